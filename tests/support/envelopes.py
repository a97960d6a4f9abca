"""What AWS services write into queues, after the samples of their documentation; persons and accounts are invented."""

import json
from typing import Any

from postroom.message import Message, MessageAttribute

TOPIC = "arn:aws:sns:eu-west-1:123456789012:orders"


def message(body: object, **attributes: str) -> Message:
    """Make a message as SQS hands it out."""
    return Message(
        id="m-1",
        body=body if isinstance(body, str) else json.dumps(body),
        receipt_handle="r-1",
        message_attributes={name: MessageAttribute(string_value=value) for name, value in attributes.items()},
        system_attributes={"MessageGroupId": "g"},
        queue="orders",
    )


def sns(body: object, **attributes: str) -> dict[str, Any]:
    """Wrap a body as SNS does without raw message delivery (sns-message-and-json-formats.html)."""
    return {
        "Type": "Notification",
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": TOPIC,
        "Subject": "My First Message",
        "Message": body if isinstance(body, str) else json.dumps(body),
        "Timestamp": "2012-05-02T00:54:06.655Z",
        "SignatureVersion": "1",
        "Signature": "EXAMPLEw6JRN...",
        "SigningCertURL": "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-f3ecfb7224c7233fe7bb5f59f96de52f.pem",
        "UnsubscribeURL": "https://sns.eu-west-1.amazonaws.com/?Action=Unsubscribe&SubscriptionArn=arn:aws:sns:eu-west-1:1",
        "MessageAttributes": {name: {"Type": "String", "Value": value} for name, value in attributes.items()},
    }


def s3(*keys: str, bucket: str = "amzn-s3-demo-bucket") -> dict[str, Any]:
    """A notification of S3 (notification-content-structure.html), one record for each key as it travels."""
    return {
        "Records": [
            {
                "eventVersion": "2.1",
                "eventSource": "aws:s3",
                "awsRegion": "us-west-2",
                "eventTime": "1970-01-01T00:00:00.000Z",
                "eventName": "ObjectCreated:Put",
                "userIdentity": {"principalId": "AIDAJDPLRKLG7UEXAMPLE"},
                "requestParameters": {"sourceIPAddress": "127.0.0.1"},
                "responseElements": {
                    "x-amz-request-id": "C3D13FE58DE4C810",
                    "x-amz-id-2": "FMyUVURIY8/IgAtTv8xRjskZQpcIZ9KG4V5Wp6S7S/JRWeUWerMUE5JgHvANOjpD",
                },
                "s3": {
                    "s3SchemaVersion": "1.0",
                    "configurationId": "testConfigRule",
                    "bucket": {
                        "name": bucket,
                        "ownerIdentity": {"principalId": "A3NL1KOZZKExample"},
                        "arn": f"arn:aws:s3:::{bucket}",
                    },
                    "object": {
                        "key": key,
                        "size": 1024,
                        "eTag": "d41d8cd98f00b204e9800998ecf8427e",
                        "versionId": "096fKKXTRTtl3on89fVO.nfljtsv6qko",
                        "sequencer": "0055AED6DCD90281E5",
                    },
                },
            }
            for key in keys
        ]
    }


S3_REMOVED: dict[str, Any] = {
    "Records": [
        {
            "eventVersion": "2.3",
            "eventSource": "aws:s3",
            "awsRegion": "eu-west-1",
            "eventTime": "2026-01-01T00:00:00.000Z",
            "eventName": "LifecycleExpiration:Delete",
            "userIdentity": {"principalId": "s3.amazonaws.com"},
            "s3": {
                "s3SchemaVersion": "1.0",
                "configurationId": "expired",
                "bucket": {"name": "amzn-s3-demo-bucket", "arn": "arn:aws:s3:::amzn-s3-demo-bucket"},
                "object": {"key": "acme/old.txt", "sequencer": "0055AED6DCD90281E6"},
            },
        }
    ]
}
S3_TEST: dict[str, Any] = {
    "Service": "Amazon S3",
    "Event": "s3:TestEvent",
    "Time": "2014-10-13T15:57:02.089Z",
    "Bucket": "amzn-s3-demo-bucket",
    "RequestId": "5582815E1AEA5ADF",
    "HostId": "8cLeGAmw098X5cv4Zkwcmo8vvZa3eH3eKxsPzbB9wrR+YstdA6Knx4Ip8EXAMPLE",
}
S3_THROUGH_EVENTBRIDGE: dict[str, Any] = {
    "version": "0",
    "id": "17793124-05d4-b198-2fde-7ededc63b103",
    "detail-type": "Object Created",
    "source": "aws.s3",
    "account": "111122223333",
    "time": "2021-11-12T00:00:00Z",
    "region": "ca-central-1",
    "resources": ["arn:aws:s3:::amzn-s3-demo-bucket1"],
    "detail": {
        "version": "0",
        "bucket": {"name": "amzn-s3-demo-bucket1"},
        "object": {
            "key": "acme/a b+c.txt",
            "size": 5,
            "etag": "b1946ac92492d2347c6235b4d2611184",
            "version-id": "IYV3p45BT0ac8hjHg1houSdS1a.Mro8e",
            "sequencer": "617f08299329d189",
        },
        "request-id": "N4N7GDK58NMKJ12R",
        "requester": "123456789012",
        "source-ip-address": "192.0.2.4",
        "reason": "PutObject",
    },
}
_MAIL: dict[str, Any] = {
    "timestamp": "2016-01-27T14:59:38.237Z",
    "source": "sender@example.com",
    "sourceArn": "arn:aws:ses:us-east-1:888888888888:identity/example.com",
    "sendingAccountId": "123456789012",
    "messageId": "00000138111222aa-33322211-cccc-cccc-cccc-ddddaaaa0680-000000",
    "destination": ["recipient@example.com"],
}
SES_BOUNCE: dict[str, Any] = {
    "notificationType": "Bounce",
    "bounce": {
        "bounceType": "Permanent",
        "bounceSubType": "General",
        "bouncedRecipients": [{"emailAddress": "recipient@example.com", "status": "5.1.1", "action": "failed"}],
        "timestamp": "2016-01-27T14:59:38.237Z",
        "feedbackId": "00000138111222aa-33322211-cccc-cccc-cccc-ddddaaaa068a-000000",
        "remoteMtaIp": "127.0.2.0",
    },
    "mail": _MAIL,
}
SES_SENT: dict[str, Any] = {
    "eventType": "Send",
    "mail": {
        **_MAIL,
        "tags": {
            "ses:configuration-set": ["ConfigSet"],
            "ses:from-domain": ["example.com"],
            "tenantId": ["acme"],
            "campaign": ["a", "b"],
            "type": ["forged"],
        },
    },
    "send": {},
}
SES_RECEIVED: dict[str, Any] = {
    "notificationType": "Received",
    "receipt": {
        "timestamp": "2015-09-11T20:32:33.936Z",
        "processingTimeMillis": 222,
        "recipients": ["recipient@example.com"],
        "spamVerdict": {"status": "PASS"},
        "action": {"type": "SNS", "topicArn": TOPIC},
    },
    "mail": {key: _MAIL[key] for key in ("timestamp", "source", "messageId", "destination")},
    "content": "Return-Path: <sender@example.com>\r\n\r\nHello.\r\n",
}
CLOUD_EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "type": "com.github.pull_request.opened",
    "source": "https://github.com/cloudevents/spec/pull",
    "subject": "123",
    "id": "A234-1234-1234",
    "time": "2018-04-05T17:31:00Z",
    "comexampleextension1": "value",
    "comexampleothervalue": 5,
    "sampledrate": None,
    "datacontenttype": "application/json",
    "data": {"order_id": "1"},
}
