"""What is in deploy/ is valid by its own schemas, and says what the consumer needs."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import botocore.session
import hcl2
import jsonschema
import promql_parser
import pytest
import yaml
from botocore.validate import ParamValidator
from click.testing import CliRunner

from postroom import Concurrency, Consumer, MessageContext, RetryPolicy, Shutdown
from postroom.cli import main
from postroom.inspection import inspect_consumer
from postroom.local.threaded import ThreadedServer
from postroom.transports import Queue, RedrivePolicy
from postroom.transports.protocol import QueueInfo
from support.ports import free_port
from support.scripted import ScriptedQueue

DEPLOY = Path(__file__).parents[2] / "deploy"
ARN = "arn:aws:sqs:eu-west-1:123456789012:"
POLICY: dict[str, Any] = json.loads((DEPLOY / "iam" / "policy.json").read_text())


class Opened(ScriptedQueue):
    """The queue and the dead-letter queue of the manifests."""

    def __init__(self, name: str) -> None:
        super().__init__()
        redrive = RedrivePolicy(f"{ARN}orders-dead", 10) if name == "orders" else None
        attributes = {"MessageRetentionPeriod": "345600" if redrive else "1209600", "ApproximateNumberOfMessages": "1"}
        self.said = QueueInfo(
            name=name, url=f"https://x/{name}", arn=ARN + name, redrive=redrive, attributes=attributes
        )

    @property
    def info(self) -> QueueInfo:
        """What the queue says of itself."""
        return self.said


class Account:
    """A client of both."""

    async def __aenter__(self) -> Self:
        """Open nothing."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close nothing."""

    async def queue(self, name: str) -> Queue:
        """Return a queue by name or ARN."""
        return Opened(name.removeprefix(ARN))


async def test_the_policy_is_the_one_that_the_check_prints() -> None:
    """The least that a consumer needs, and no more."""
    orders: Consumer[Any, Any] = Consumer("orders", client=Account(), retry=RetryPolicy(attempts=5))

    @orders.handler
    async def handle(payload: int, ctx: MessageContext) -> None: ...

    report = await inspect_consumer(orders)
    assert report.policy == POLICY


def _resources(name: str) -> dict[str, Any]:
    """Return Terraform's configuration as plain values."""
    with (DEPLOY / "terraform" / name).open() as file:
        return dict(_plain(hcl2.load(file)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_plain(name): _plain(each) for name, each in value.items() if not str(name).startswith("__")}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.strip('"') if isinstance(value, str) else value


def test_terraform_allows_the_same() -> None:
    """Statement by statement."""
    main_file = _resources("main.tf")
    [document] = [each["aws_iam_policy_document"]["consumer"] for each in main_file["data"]]
    found = {statement["sid"]: statement["actions"] for statement in document["statement"]}
    assert found == {statement["Sid"]: statement["Action"] for statement in POLICY["Statement"]}


def test_terraform_refers_to_what_it_declares() -> None:
    """Every var and every resource that is named exists, and every variable is used."""
    files = {name: (DEPLOY / "terraform" / name).read_text() for name in ("main.tf", "variables.tf", "outputs.tf")}
    parsed = [_resources(name) for name in files]
    text = "\n".join(files.values())
    declared = {name for each in parsed for block in each.get("variable", ()) for name in block}
    assert set(re.findall(r"\bvar\.(\w+)", text)) == declared
    resources = {
        (kind, name) for each in parsed for block in each.get("resource", ()) for kind in block for name in block[kind]
    }
    named = set(re.findall(r"(?<!data\.)\b(aws_(?:sqs_queue|iam_policy))\.(\w+)\.", text))
    assert named <= resources


def test_alarms_watch_metrics_that_sqs_has() -> None:
    """By their names in the CloudWatch of SQS, fair queues included."""
    alarms = [
        block["aws_cloudwatch_metric_alarm"]
        for block in _resources("main.tf")["resource"]
        if "aws_cloudwatch_metric_alarm" in block
    ]
    text = json.dumps(alarms)
    assert set(re.findall(r'"metric_name": "(\w+)"', text)) == {
        "ApproximateNumberOfMessagesVisible",
        "ApproximateNumberOfMessagesNotVisible",
        "ApproximateAgeOfOldestMessageInQuietGroups",
        "NumberOfMessagesDeleted",
    }


def test_the_task_definition_is_one_by_the_model_of_ecs() -> None:
    """Every field exists and has the right type; Fargate's limit of stopTimeout is kept."""
    definition = json.loads((DEPLOY / "ecs" / "task-definition.json").read_text())
    shape = botocore.session.Session().get_service_model("ecs").operation_model("RegisterTaskDefinition").input_shape
    report = ParamValidator().validate(definition, shape)
    assert not report.has_errors(), report.generate_report()
    [container] = definition["containerDefinitions"]
    assert container["stopTimeout"] <= 120
    _fits(container["stopTimeout"])
    assert container["healthCheck"]["command"] == ["CMD", "postroom", "health"]
    assert container["command"] == ["run"]


def _fits(grace: float) -> None:
    """Assert that a default stop fits into a grace."""
    assert Shutdown().total + 2 <= grace


def _documents(name: str) -> list[dict[str, Any]]:
    text = (DEPLOY / "kubernetes" / name).read_text()
    return [document for document in yaml.safe_load_all(text) if document]


def test_kubernetes_manifests_are_valid_by_its_schemas() -> None:
    """Strictly: no field that Kubernetes does not know."""
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for document in _documents("deployment.yaml"):
        validator.validate(document, "1.31", strict=True)


def test_the_pod_has_the_grace_and_the_probes_that_it_needs() -> None:
    """Its stop fits, and probes ask pages that exist on the port that the process serves."""
    [deployment] = [each for each in _documents("deployment.yaml") if each["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    _fits(pod["terminationGracePeriodSeconds"])
    [worker] = pod["containers"]
    environment = {each["name"]: each["value"] for each in worker["env"]}
    assert {port["containerPort"] for port in worker["ports"]} == {int(environment["POSTROOM_HEALTH_PORT"])}
    probes = {name: worker[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert probes == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
    assert pod["securityContext"]["runAsNonRoot"] is True


def test_keda_does_not_scale_on_what_consumers_park() -> None:
    """Quiet groups where there are groups; never messages in flight."""
    text = {"type": "string"}
    trigger = {
        "type": "object",
        "required": ["type", "metadata"],
        "properties": {"metadata": {"type": "object", "additionalProperties": text}},  # KEDA takes text only
    }
    schema = {
        "type": "object",
        "required": ["scaleTargetRef", "triggers"],
        "properties": {"triggers": {"type": "array", "minItems": 1, "items": trigger}},
    }
    metadata: dict[str, dict[str, str]] = {}
    for name in ("keda.yaml", "keda-without-groups.yaml"):
        [scaled] = [each["spec"] for each in _documents(name) if each["kind"] == "ScaledObject"]
        [authentication] = [each for each in _documents(name) if each["kind"] == "TriggerAuthentication"]
        jsonschema.validate(scaled, schema)
        [trigger_found] = scaled["triggers"]
        assert trigger_found["authenticationRef"]["name"] == authentication["metadata"]["name"]
        metadata[trigger_found["type"]] = trigger_found["metadata"]
    assert metadata["aws-sqs-queue"]["scaleOnInFlight"] == "false"
    assert metadata["aws-cloudwatch"]["metricName"] == "ApproximateNumberOfMessagesVisibleInQuietGroups"


def test_keda_follows_the_rule_for_a_fleet() -> None:
    """It asks for a number of replicas that a rule computes, keeps them without an answer, and fits the deployment."""
    [scaled] = [each["spec"] for each in _documents("keda-fleet.yaml")]
    [trigger] = scaled["triggers"]
    metadata: dict[str, str] = trigger["metadata"]
    assert all(isinstance(each, str) for each in metadata.values())  # KEDA takes text only
    assert (trigger["type"], trigger["metricType"], metadata["threshold"]) == ("prometheus", "AverageValue", "1")
    assert scaled["minReplicaCount"] <= scaled["fallback"]["replicas"] <= scaled["maxReplicaCount"]
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
    promql_parser.parse(metadata["query"])
    assert re.findall(r"postroom:\w+:\w+", metadata["query"]) == ["postroom:replicas:wanted"]
    assert "postroom:replicas:wanted" in {rule.get("record") for rule in rules}
    [deployment] = [each for each in _documents("deployment.yaml") if each["kind"] == "Deployment"]
    assert scaled["scaleTargetRef"]["name"] == deployment["metadata"]["name"]


def _instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines()]


def test_the_image_is_slim_runs_as_a_number_and_gets_signals() -> None:
    """Commands are lists: a shell as the first process would keep SIGTERM to itself."""
    found = _instructions()
    assert {what.split()[0] for name, what in found if name == "FROM"} == {"python:3.13-slim"}
    [user] = [what for name, what in found if name == "USER"]
    assert int(user) > 0
    for name, what in found:
        if name in {"ENTRYPOINT", "CMD"}:
            assert isinstance(json.loads(what), list)
    order = [name for name, _ in found]
    assert order.index("USER") < order.index("ENTRYPOINT")


def test_the_commands_of_the_image_work_with_its_environment(tmp_path: Path) -> None:
    """The entry point consumes, the health check asks it, SIGTERM ends it with 0; here, outside of a container."""
    found = _instructions()
    [entry] = [json.loads(what) for name, what in found if name == "ENTRYPOINT"]
    [command] = [json.loads(what) for name, what in found if name == "CMD"]
    [check] = [json.loads(what.partition(" CMD ")[2]) for name, what in found if name == "HEALTHCHECK"]
    [variables] = [what for name, what in found if name == "ENV"]
    image = dict(each.split("=", 1) for each in shlex.split(variables))
    assert entry[0] == check[0] == "postroom"
    (tmp_path / "shop_image.py").write_text(
        "from postroom import Consumer, MessageContext\n"
        "orders = Consumer('orders')\n"
        "@orders.handler\n"
        "async def handle(n: int, ctx: MessageContext) -> None: ...\n"
    )
    with ThreadedServer() as server:
        server.create_queue("orders")
        own = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "POSTROOM_"))}
        environment = {
            **own,
            **{name: value for name, value in image.items() if name != "PATH"},
            "POSTROOM_HEALTH_PORT": str(free_port()),
            "POSTROOM_CONSUMERS": "shop_image:orders",
            "AWS_ENDPOINT_URL_SQS": server.endpoint_url,
        }
        run = [sys.executable, "-m", "postroom"]
        worker = subprocess.Popen(
            [*run, *entry[1:], *command], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
        )
        with worker:
            assert worker.stderr is not None
            seen = ""
            while "Consuming" not in seen:
                line = worker.stderr.readline()
                assert line, seen
                assert json.loads(line)["level"]
                seen += line
            healthy = subprocess.run([*run, *check[1:]], env=environment, cwd=tmp_path, check=False, timeout=60)
            assert healthy.returncode == 0
            worker.terminate()
            worker.stderr.read()
            assert worker.wait(30) == 0
        gone = subprocess.run([*run, *check[1:]], env=environment, cwd=tmp_path, check=False, timeout=60)
        assert gone.returncode == 1


def test_the_document_names_every_file() -> None:
    """And the commands that it shows are ones that exist, with options that exist."""
    text = (DEPLOY.parent / "docs" / "deployment.md").read_text(encoding="utf-8")
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.suffix != ".tf":
            assert f"deploy/{path.relative_to(DEPLOY)}" in text, path
    options = set(re.findall(r"(?<=[ \[`])--[a-z-]+", " ".join(re.findall(r"postroom check[^`]*", text))))
    shown = CliRunner().invoke(main, ["check", "--help"]).output
    assert options
    assert all(option in shown for option in options), options


@pytest.mark.skipif(importlib.util.find_spec("pydantic_settings") is None, reason="pydantic-settings is not installed")
def test_the_settings_class_of_the_document_makes_a_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code runs, reads the environment that it shows, and refuses a wrong one."""
    text = (DEPLOY.parent / "docs" / "deployment.md").read_text(encoding="utf-8")
    [code] = [block for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "BaseSettings" in block]
    [shown] = re.findall(r"```ini\n(.*?)```", text, flags=re.DOTALL)
    for line in shown.splitlines():
        name, _, value = line.partition("=")
        monkeypatch.setenv(name, value)
    names: dict[str, Any] = {"__name__": "settings_of_the_document"}
    exec(compile(code, "deployment.md", "exec"), names)  # noqa: S102 - the document's own code is what is tested
    made = names["make_orders"](names["Settings"]())
    assert made.queue == "orders-eu"
    assert made.settings.concurrency == Concurrency(total=32, per_tenant=4, handler_timeout=20)
    assert made.settings.shutdown.total == 50
    monkeypatch.setenv("ORDERS_TOTAL", "many")
    with pytest.raises(ValueError, match=r"total"):
        names["Settings"]()
