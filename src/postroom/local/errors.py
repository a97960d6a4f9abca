"""What the broker answers when it refuses: SQS's own error types, codes and texts.

SQS has two names for most errors: the *type* of the JSON protocol (``QueueDoesNotExist``) and the older *code* of the
query protocol (``AWS.SimpleQueueService.NonExistentQueue``). Both travel: the code in a header beside the type, so
that a client of either generation finds the one it knows.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html
"""

_LEGACY_PREFIX = "AWS.SimpleQueueService."
_PREFIXED = frozenset(
    {
        "BatchEntryIdsNotDistinct",
        "BatchRequestTooLong",
        "EmptyBatchRequest",
        "InvalidBatchEntryId",
        "MessageNotInflight",
        "PurgeQueueInProgress",
        "QueueDeletedRecently",
        "TooManyEntriesInBatchRequest",
        "UnsupportedOperation",
    }
)
_RENAMED = {
    "QueueDoesNotExist": "AWS.SimpleQueueService.NonExistentQueue",
    "QueueNameExists": "QueueAlreadyExists",
    "InvalidParameterValueException": "InvalidParameterValue",
    "MissingRequiredParameterException": "MissingParameter",
    "UnknownOperationException": "InvalidAction",
    "SerializationException": "MalformedInput",
    "ServiceUnavailableException": "ServiceUnavailable",
}


class BrokerError(Exception):
    """SQS refuses a request, or one entry of a batch.

    Args:
        kind: the error type of the JSON protocol, such as ``QueueDoesNotExist``.
        message: the text for humans.
        status: the HTTP status.
        sender_fault: whether the same request would be refused again.
    """

    def __init__(self, kind: str, message: str, *, status: int = 400, sender_fault: bool = True) -> None:
        if not message.isascii():  # it may quote half of a surrogate pair, which cannot be written
            message = message.encode("utf-8", "replace").decode()
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.status = status
        self.sender_fault = sender_fault

    @property
    def code(self) -> str:
        """The code of the query protocol; also what boto3 shows as ``Error.Code``."""
        if self.kind in _PREFIXED:
            return _LEGACY_PREFIX + self.kind
        return _RENAMED.get(self.kind, self.kind)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def invalid_parameter(text: str) -> BrokerError:
    """Make an InvalidParameterValue error."""
    return BrokerError("InvalidParameterValueException", text)


def invalid_value(name: str, value: object, reason: str) -> BrokerError:
    """Make the InvalidParameterValue error that names a parameter, its value and the reason."""
    return invalid_parameter(f"Value {value} for parameter {name} is invalid. Reason: {reason}")


def missing_parameter(name: str) -> BrokerError:
    """Make the error for a required parameter that is not there."""
    return BrokerError("MissingRequiredParameterException", f"The request must contain the parameter {name}.")


def queue_does_not_exist() -> BrokerError:
    """Make the error for a queue that this account does not have in this region."""
    return BrokerError("QueueDoesNotExist", "The specified queue does not exist.")


def invalid_receipt_handle(handle: str) -> BrokerError:
    """Make the error for a text that is not a receipt handle of this queue."""
    shown = handle if len(handle) <= 80 else handle[:77] + "..."
    return BrokerError(
        "ReceiptHandleIsInvalid", f'The input receipt handle "{shown}" is not a valid receipt handle.', status=404
    )
