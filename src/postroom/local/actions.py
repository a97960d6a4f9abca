"""Every SQS action by name: the shape of its request, and what it does. Both wire protocols go through this table."""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from postroom.local import shapes
from postroom.local.broker import Broker
from postroom.local.options import Scope
from postroom.local.queue import LocalQueue


class Call(NamedTuple):
    """Who calls, and where."""

    engine: Broker
    scope: Scope
    sender: str
    base_url: str
    trace: str | None = None
    """The trace header of the request."""

    def queue(self, request: shapes.QueueRequest | shapes.SendMessage) -> LocalQueue:
        """Return the queue that a request is about."""
        return self.engine.queue(request.queue_url, self.scope)

    def url(self, queue: LocalQueue) -> str:
        """Return the URL of a queue, as this caller reaches it."""
        return f"{self.base_url}/{queue.scope.account}/{queue.name}"


def _create_queue(call: Call, request: shapes.CreateQueue) -> shapes.QueueUrl:
    queue = call.engine.create_queue(request.queue_name, request.attributes, request.tags, scope=call.scope)
    return shapes.QueueUrl(call.url(queue))


def _get_queue_url(call: Call, request: shapes.GetQueueUrl) -> shapes.QueueUrl:
    return shapes.QueueUrl(
        call.url(call.engine.queue_named(request.queue_name, call.scope, request.queue_owner_account_id))
    )


def _list_queues(call: Call, request: shapes.ListQueues) -> shapes.QueueUrls:
    queues, token = call.engine.list_queues(
        request.queue_name_prefix, max_results=request.max_results, token=request.next_token, scope=call.scope
    )
    return shapes.QueueUrls([call.url(queue) for queue in queues], token)


def _list_sources(call: Call, request: shapes.ListSources) -> shapes.SourceQueueUrls:
    queues, token = call.engine.dead_letter_sources(
        call.queue(request), max_results=request.max_results, token=request.next_token
    )
    return shapes.SourceQueueUrls([call.url(queue) for queue in queues], token)


def _delete_queue(call: Call, request: shapes.QueueRequest) -> None:
    call.engine.delete_queue(call.queue(request))


def _purge_queue(call: Call, request: shapes.QueueRequest) -> None:
    call.engine.purge_queue(call.queue(request))


def _get_attributes(call: Call, request: shapes.GetAttributes) -> shapes.QueueAttributes:
    return shapes.QueueAttributes(call.engine.get_attributes(call.queue(request), request.attribute_names))


def _set_attributes(call: Call, request: shapes.SetAttributes) -> None:
    call.engine.set_attributes(call.queue(request), request.attributes)


def _tag_queue(call: Call, request: shapes.TagQueue) -> None:
    call.engine.tag_queue(call.queue(request), request.tags)


def _untag_queue(call: Call, request: shapes.UntagQueue) -> None:
    call.engine.untag_queue(call.queue(request), request.tag_keys)


def _list_tags(call: Call, request: shapes.QueueRequest) -> shapes.QueueTags:
    return shapes.QueueTags(call.queue(request).tags)


def _add_permission(call: Call, request: shapes.AddPermission) -> None:
    call.engine.add_permission(call.queue(request), request)


def _remove_permission(call: Call, request: shapes.RemovePermission) -> None:
    call.engine.remove_permission(call.queue(request), request.label)


def _send(call: Call, request: shapes.SendMessage) -> shapes.Sent:
    return call.engine.send(call.queue(request), request, call.sender, trace=call.trace)


def _send_batch(call: Call, request: shapes.SendBatch) -> shapes.SentBatch:
    return call.engine.send_batch(call.queue(request), request.entries, call.sender, trace=call.trace)


def _delete(call: Call, request: shapes.Delete) -> None:
    call.engine.delete(call.queue(request), request.receipt_handle)


def _delete_batch(call: Call, request: shapes.DeleteBatch) -> shapes.BatchResult:
    return call.engine.delete_batch(call.queue(request), request.entries)


def _change_visibility(call: Call, request: shapes.ChangeVisibility) -> None:
    call.engine.change_visibility(call.queue(request), request.receipt_handle, request.visibility_timeout)


def _change_visibility_batch(call: Call, request: shapes.ChangeVisibilityBatch) -> shapes.BatchResult:
    return call.engine.change_visibility_batch(call.queue(request), request.entries)


def _start_move(call: Call, request: shapes.StartMove) -> shapes.MoveHandle:
    handle = call.engine.start_move(
        request.source_arn, request.destination_arn, request.max_number_of_messages_per_second
    )
    return shapes.MoveHandle(handle)


def _list_moves(call: Call, request: shapes.ListMoves) -> shapes.MoveTasks:
    return shapes.MoveTasks(call.engine.list_moves(request.source_arn, request.max_results))


def _cancel_move(call: Call, request: shapes.CancelMove) -> shapes.MovedCount:
    return call.engine.cancel_move(request.task_handle)


class Action(NamedTuple):
    """One action. ``run`` is None for ReceiveMessage, which may have to wait and is the front's own business."""

    name: str
    request: type[msgspec.Struct]
    decode: Callable[[bytes], Any]
    run: Callable[[Call, Any], msgspec.Struct | None] | None


def _action(
    name: str, request: type[msgspec.Struct], run: Callable[[Call, Any], msgspec.Struct | None] | None
) -> Action:
    return Action(name, request, msgspec.json.Decoder(request).decode, run)


RECEIVE = _action("ReceiveMessage", shapes.Receive, None)

ACTIONS = {
    action.name: action
    for action in (
        RECEIVE,
        _action("AddPermission", shapes.AddPermission, _add_permission),
        _action("CancelMessageMoveTask", shapes.CancelMove, _cancel_move),
        _action("ChangeMessageVisibility", shapes.ChangeVisibility, _change_visibility),
        _action("ChangeMessageVisibilityBatch", shapes.ChangeVisibilityBatch, _change_visibility_batch),
        _action("CreateQueue", shapes.CreateQueue, _create_queue),
        _action("DeleteMessage", shapes.Delete, _delete),
        _action("DeleteMessageBatch", shapes.DeleteBatch, _delete_batch),
        _action("DeleteQueue", shapes.QueueRequest, _delete_queue),
        _action("GetQueueAttributes", shapes.GetAttributes, _get_attributes),
        _action("GetQueueUrl", shapes.GetQueueUrl, _get_queue_url),
        _action("ListDeadLetterSourceQueues", shapes.ListSources, _list_sources),
        _action("ListMessageMoveTasks", shapes.ListMoves, _list_moves),
        _action("ListQueueTags", shapes.QueueRequest, _list_tags),
        _action("ListQueues", shapes.ListQueues, _list_queues),
        _action("PurgeQueue", shapes.QueueRequest, _purge_queue),
        _action("RemovePermission", shapes.RemovePermission, _remove_permission),
        _action("SendMessage", shapes.SendMessage, _send),
        _action("SendMessageBatch", shapes.SendBatch, _send_batch),
        _action("SetQueueAttributes", shapes.SetAttributes, _set_attributes),
        _action("StartMessageMoveTask", shapes.StartMove, _start_move),
        _action("TagQueue", shapes.TagQueue, _tag_queue),
        _action("UntagQueue", shapes.UntagQueue, _untag_queue),
    )
}
