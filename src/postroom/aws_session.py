"""The AWS session, and the errors, of what speaks to another service than SQS: S3, Step Functions, Secrets Manager."""

import os
from typing import Any, cast


def new_session() -> Any:  # an AioSession, which has no types
    """Return a session that finds its region where an ``AwsClient`` finds it."""
    from aiobotocore.session import AioSession  # noqa: PLC0415 - loaded with the client, not before

    session: Any = AioSession()
    if (region := environment_region()) is not None:
        session.set_config_variable("region", region)
    return session


def error_code(error: Exception) -> str:
    """Return the code of what AWS answered, or what went wrong on the way to it."""
    answer: Any = getattr(error, "response", None)
    code: Any = cast("dict[str, Any]", answer).get("Error", {}).get("Code") if isinstance(answer, dict) else None
    return str(code) if code else type(error).__name__


def environment_region() -> str | None:
    """Return the region that the environment names; None if it names none.

    botocore alone among the SDKs does not know AWS_REGION, which ECS, Lambda and people set. The environment counts
    before the profile, as it does for all of them.
    """
    return os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION") or None
