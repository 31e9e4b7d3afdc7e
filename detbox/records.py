"""Classes of named fields for what every start loads.

They are written as with :mod:`dataclasses`, whose import costs 7 ms and each class of it 0.12 ms more, and as with
``typing.NamedTuple``, each class of which costs 0.28 ms; here a class costs 0.01 to 0.02 ms.  A method that makes
objects fast is compiled, in 0.1 to 0.5 ms, when a class has had a few of them: of most there is only one in a run.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform, overload

_C = TypeVar("_C", bound=type)
_T = TypeVar("_T")
#: Objects of a class that are made without a method of its own.
_FEW = 3


class _Field:
    """What :func:`field` leaves in the class body."""

    __slots__ = ("factory",)

    def __init__(self, factory: Callable[[], Any]) -> None:
        self.factory = factory


def field(*, default_factory: Callable[[], _T]) -> _T:
    """A field whose default is made anew for each object."""
    made: Any = _Field(default_factory)
    return made


@overload
def record(cls: _C, /) -> _C: ...
@overload
def record(*, frozen: bool = False) -> Callable[[_C], _C]: ...
@dataclass_transform(eq_default=False, field_specifiers=(field,))
def record(cls: Any = None, /, *, frozen: bool = False) -> Any:
    """Class decorator: the annotated names become slots and the parameters of ``__init__``.

    ``__post_init__`` is called, if there is one.  Objects are compared by identity.  ``frozen`` is for the type
    checker alone: nothing hinders a change at run time.  The class is a new one, as with ``slots=True`` of dataclasses,
    so ``super()`` without arguments does not work in it.
    """
    return _slotted if cls is None else _slotted(cls)


def _slotted(cls: type) -> type:
    own = tuple(cls.__dict__.get("__annotations__", ()))
    members = {name: value for name, value in cls.__dict__.items() if name not in ("__dict__", "__weakref__")}
    defaults = {name: members.pop(name) for name in own if name in members}
    members.update(__slots__=own, _own_defaults=defaults, __init__=_first_init, __qualname__=cls.__qualname__)
    return type(cls)(cls.__name__, cls.__bases__, members)


def _first_init(self: Any, *args: Any, **named: Any) -> None:
    """Makes the first few objects of a class; then writes the ``__init__`` of the class."""
    cls: Any = next(base for base in type(self).__mro__ if base.__dict__.get("__init__") is _first_init)
    values = _values_of_one_of_few(cls, names(cls), _defaults_of(cls), args, named)
    if values is None:
        cls.__init__ = init = _init_of(cls)
        return init(self, *args, **named)
    for name, value in values.items():
        setattr(self, name, value.factory() if isinstance(value, _Field) else value)
    if hasattr(cls, "__post_init__"):
        self.__post_init__()
    return None


def _values_of_one_of_few(
    cls: type, fields: tuple[str, ...], defaults: dict[str, Any], args: tuple[Any, ...], named: dict[str, Any]
) -> dict[str, Any] | None:
    """The values of a new object in the order of its fields.

    None if the class has had a few objects, or the arguments are not right: a compiled method knows what to raise.
    """
    _made[cls] = made = _made.get(cls, 0) + 1
    given = dict(zip(fields, args, strict=False))
    both = defaults | given | named
    if made > _FEW or len(args) > len(fields) or not given.keys().isdisjoint(named) or both.keys() != set(fields):
        return None
    return {name: both[name] for name in fields}


_made: dict[type, int] = {}


def _defaults_of(cls: type) -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        defaults.update(base.__dict__.get("_own_defaults", ()))
    return defaults


def _init_of(cls: Any) -> Callable[..., None]:
    defaults = _defaults_of(cls)
    known: dict[str, Any] = {"_absent": _Field}
    parameters, body = ["self"], []
    for name in names(cls):
        value = name
        if name in defaults:
            default = defaults[name]
            made = isinstance(default, _Field)
            known["_" + name] = default.factory if made else default
            parameters.append(f"{name}={'_absent' if made else '_' + name}")
            if made:
                value = f"_{name}() if {name} is _absent else {name}"
        else:
            parameters.append(name)
        body.append(f" self.{name} = {value}\n")
    if hasattr(cls, "__post_init__"):
        body.append(" self.__post_init__()\n")
    exec(f"def __init__({', '.join(parameters)}):\n{''.join(body) or ' pass'}", known)
    init: Callable[..., None] = known["__init__"]
    return init


if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:
    try:
        from _collections import _tuplegetter
    except ImportError:  # it is CPython's, which does without it as well

        def _tuplegetter(index, doc):
            return property(itemgetter(index), doc=doc)

    class _NamedTupleType(type):
        """Makes a class of tuples from a body with annotated names."""

        def __new__(mcs, name, bases, body):
            if bases != (tuple,) and not hasattr(bases[0], "_fields"):
                fields = tuple(body.get("__annotations__", ()))
                defaults = {field: body.pop(field) for field in fields if field in body}
                body.update((field, _tuplegetter(at, None)) for at, field in enumerate(fields))
                body.update(__slots__=(), __match_args__=fields, _fields=fields, _field_defaults=defaults)
                body["__new__"] = _first_new
            return super().__new__(mcs, name, bases, body)

    def _first_new(cls, /, *args, **named):
        """Makes the first few objects of a class; then writes the ``__new__`` of the class."""
        own = next(base for base in cls.__mro__ if "_fields" in base.__dict__)
        values = _values_of_one_of_few(own, own._fields, own._field_defaults, args, named)
        if values is not None:
            return tuple.__new__(cls, values.values())
        known = {"_defaults": own._field_defaults, "_new": tuple.__new__}
        parameters = [f"{name}=_defaults[{name!r}]" if name in own._field_defaults else name for name in own._fields]
        values = "".join(f"{name}, " for name in own._fields)
        made = eval(f"lambda {', '.join(['_cls', *parameters])}: _new(_cls, ({values}))", known)
        made.__name__, made.__qualname__ = "__new__", f"{own.__qualname__}.__new__"
        own.__new__ = staticmethod(made)
        return made(cls, *args, **named)

    class NamedTuple(tuple, metaclass=_NamedTupleType):
        """Base of classes of tuples with named fields, as ``typing.NamedTuple`` is."""

        __slots__ = ()

        def _replace(self, /, **changes):
            """A new one with some fields changed.  Raises TypeError for a name that is no field."""
            return type(self)(**self._asdict() | changes)

        def _asdict(self):
            """The values by the names of the fields."""
            return dict(zip(self._fields, self, strict=True))

        def __repr__(self):
            values = ", ".join(f"{name}={value!r}" for name, value in self._asdict().items())
            return f"{type(self).__name__}({values})"

        def __getnewargs__(self):
            return tuple(self)


class Alike:
    """Base of classes without fields: all objects of one class are equal."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    def __hash__(self) -> int:
        return hash(type(self))


def replace(given: _T, **changes: Any) -> _T:
    """A new object like ``given`` with some fields changed."""
    cls = type(given)
    return cls(**as_dict(given) | changes)


def copied(given: _T) -> _T:
    """A new object with the same values."""
    cls = type(given)
    if cls not in _values:
        _values[cls] = attrgetter(*names(cls))
    made: _T = cls(*_values[cls](given))
    return made


def as_dict(given: object) -> dict[str, Any]:
    """The values of a record by the names of its fields."""
    return {name: getattr(given, name) for name in names(type(given))}


_names: dict[type, tuple[str, ...]] = {}
#: For classes of two fields or more: what gives all of their values.
_values: dict[type, Callable[[Any], tuple[Any, ...]]] = {}


def names(cls: type) -> tuple[str, ...]:
    """The fields of a record class, those of its bases first."""
    if cls not in _names:
        _names[cls] = tuple(name for base in reversed(cls.__mro__) for name in base.__dict__.get("__slots__", ()))
    return _names[cls]
