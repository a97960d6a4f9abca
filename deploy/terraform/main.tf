terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

resource "aws_sqs_queue" "dead_letters" {
  name = "${var.name}-dead"
  # A message that SQS moves keeps its age, so this has to be longer than the queue's own retention.
  message_retention_seconds = 1209600
  sqs_managed_sse_enabled   = true
}

resource "aws_sqs_queue" "queue" {
  name = var.name
  # Each receive of the consumer asks for its own visibility timeout (Visibility(timeout=...)); this is for others.
  visibility_timeout_seconds = 60
  message_retention_seconds  = 345600
  receive_wait_time_seconds  = 20
  sqs_managed_sse_enabled    = true
  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.dead_letters.arn
    maxReceiveCount     = var.max_receive_count
  })
}

resource "aws_sqs_queue_redrive_allow_policy" "dead_letters" {
  queue_url = aws_sqs_queue.dead_letters.id
  redrive_allow_policy = jsonencode({
    redrivePermission = "byQueue"
    sourceQueueArns   = [aws_sqs_queue.queue.arn]
  })
}

data "aws_iam_policy_document" "consumer" {
  statement {
    sid = "Consume"
    actions = [
      "sqs:ChangeMessageVisibility",
      "sqs:DeleteMessage",
      "sqs:GetQueueAttributes",
      "sqs:GetQueueUrl",
      "sqs:ReceiveMessage",
    ]
    resources = [aws_sqs_queue.queue.arn]
  }

  statement {
    sid = "Reject"
    actions = [
      "sqs:GetQueueAttributes",
      "sqs:GetQueueUrl",
      "sqs:SendMessage",
    ]
    resources = [aws_sqs_queue.dead_letters.arn]
  }
}

resource "aws_iam_policy" "consumer" {
  name   = "${var.name}-consumer"
  policy = data.aws_iam_policy_document.consumer.json
}

resource "aws_cloudwatch_metric_alarm" "dead_letters" {
  alarm_name          = "${var.name}-dead-letters"
  alarm_description   = "Messages could not be handled. The attribute postroom.reason of each says why."
  namespace           = "AWS/SQS"
  metric_name         = "ApproximateNumberOfMessagesVisible"
  dimensions          = { QueueName = aws_sqs_queue.dead_letters.name }
  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions
}

# What tenants within their share feel. A noisy tenant's own backlog is no alarm: it is being held back.
resource "aws_cloudwatch_metric_alarm" "quiet_tenants_wait" {
  alarm_name          = "${var.name}-quiet-tenants-wait"
  alarm_description   = "The oldest message of a tenant within its share has waited for too long: add replicas."
  namespace           = "AWS/SQS"
  metric_name         = "ApproximateAgeOfOldestMessageInQuietGroups"
  dimensions          = { QueueName = aws_sqs_queue.queue.name }
  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = 5
  comparison_operator = "GreaterThanThreshold"
  threshold           = var.longest_wait
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions
}

# SQS hands out nothing more at 120,000 messages in flight. Consumers stop to defer and to park at 90,000.
resource "aws_cloudwatch_metric_alarm" "in_flight" {
  alarm_name          = "${var.name}-in-flight"
  alarm_description   = "Close to the limit of 120,000 messages in flight: look for tenants with a long outage."
  namespace           = "AWS/SQS"
  metric_name         = "ApproximateNumberOfMessagesNotVisible"
  dimensions          = { QueueName = aws_sqs_queue.queue.name }
  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = 3
  comparison_operator = "GreaterThanThreshold"
  threshold           = 100000
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions
}

resource "aws_cloudwatch_metric_alarm" "nothing_consumes" {
  alarm_name          = "${var.name}-nothing-consumes"
  alarm_description   = "Messages wait and none was deleted for ten minutes: no consumer runs, or none gets through."
  comparison_operator = "GreaterThanThreshold"
  evaluation_periods  = 2
  threshold           = 0
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions

  metric_query {
    id          = "stuck"
    expression  = "IF(visible > 0 AND FILL(deleted, 0) == 0, 1, 0)"
    label       = "messages wait and none is deleted"
    return_data = true
  }

  metric_query {
    id = "visible"
    metric {
      namespace   = "AWS/SQS"
      metric_name = "ApproximateNumberOfMessagesVisible"
      dimensions  = { QueueName = aws_sqs_queue.queue.name }
      period      = 300
      stat        = "Minimum"
    }
  }

  metric_query {
    id = "deleted"
    metric {
      namespace   = "AWS/SQS"
      metric_name = "NumberOfMessagesDeleted"
      dimensions  = { QueueName = aws_sqs_queue.queue.name }
      period      = 300
      stat        = "Sum"
    }
  }
}
