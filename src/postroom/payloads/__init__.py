"""From a message to what a handler works with: payloads, contexts, envelopes, signatures."""

from postroom.payloads.attributes import SAFE_ID, AttributeResolver, attribute, context_from_attributes
from postroom.payloads.contents import Base64Body, Contents, GzipBody
from postroom.payloads.decoder import Decoder
from postroom.payloads.decoding import decoder_for
from postroom.payloads.envelopes import (
    SnsEnvelope,
    unwrap_cloudevents,
    unwrap_eventbridge,
    unwrap_ses,
    unwrap_sns,
)
from postroom.payloads.groups import cross_check_group
from postroom.payloads.handlers import payload_type_of
from postroom.payloads.s3 import S3Event, S3EventDetail, S3Record, unwrap_s3
from postroom.payloads.signing import KeyRing, SignedContext, sign, signed

__all__ = [
    "SAFE_ID",
    "AttributeResolver",
    "Base64Body",
    "Contents",
    "Decoder",
    "GzipBody",
    "KeyRing",
    "S3Event",
    "S3EventDetail",
    "S3Record",
    "SignedContext",
    "SnsEnvelope",
    "attribute",
    "context_from_attributes",
    "cross_check_group",
    "decoder_for",
    "payload_type_of",
    "sign",
    "signed",
    "unwrap_cloudevents",
    "unwrap_eventbridge",
    "unwrap_s3",
    "unwrap_ses",
    "unwrap_sns",
]
