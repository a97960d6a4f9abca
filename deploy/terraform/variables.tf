variable "name" {
  description = "The name of the queue."
  type        = string
  default     = "orders"
}

variable "max_receive_count" {
  description = "Receives until a dead letter: the attempts of RetryPolicy(attempts=...), and some to spare."
  type        = number
  default     = 10

  validation {
    condition     = var.max_receive_count >= 5
    error_message = "With fewer than 5 the consumer spends none on outages of tenants."
  }
}

variable "longest_wait" {
  description = "Seconds that the oldest message of a quiet tenant may wait."
  type        = number
  default     = 60
}

variable "alarm_actions" {
  description = "ARNs that alarms notify."
  type        = list(string)
  default     = []
}
