"""What a tenant is called in the shared state."""

from dataclasses import dataclass, field

import attrs
import pydantic
import pytest

from postroom.fleet.names import Unnamable, name_of


@dataclass(frozen=True)
class Tenant:
    """A record with a field that does not tell tenants apart."""

    name: str
    trace: str = field(default="", compare=False)


@attrs.frozen
class Attrs:
    """The same, and a field with an underscore, which encoders leave out."""

    _name: str
    trace: str = attrs.field(default="", eq=False)


class Model(pydantic.BaseModel, frozen=True):
    """The same without one."""

    name: str


@pytest.mark.parametrize(
    ("tenant", "other"), [(Tenant("a", "1"), Tenant("a", "2")), (Attrs("a", "1"), Attrs("a", "2"))]
)
def test_equal_tenants_have_one_name(tenant: object, other: object) -> None:
    """What does not count in their comparison is no part of it, also inside of a tuple."""
    assert tenant == other
    assert name_of(tenant) == name_of(other)
    assert name_of((tenant, 1)) == name_of((other, 1))
    assert name_of(frozenset([tenant])) == name_of(frozenset([other]))


@pytest.mark.parametrize("kind", [Tenant, Attrs, Model, lambda name: (name, 1), lambda name: frozenset([name])])
def test_two_tenants_have_two_names(kind: type) -> None:
    """Whatever kind of record they are."""
    make = (lambda name: kind(name=name)) if kind in {Tenant, Attrs, Model} else kind
    assert name_of(make("a")) != name_of(make("b"))


def test_what_has_no_text_has_no_name() -> None:
    """An address in memory would name another tenant in each process."""
    with pytest.raises(Unnamable, match="object cannot be named alike"):
        name_of(object())
