output "queue_url" {
  description = "For Consumer(...), and for senders."
  value       = aws_sqs_queue.queue.id
}

output "policy_arn" {
  description = "Attach it to the role of the task or of the service account."
  value       = aws_iam_policy.consumer.arn
}
