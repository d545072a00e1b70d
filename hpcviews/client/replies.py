"""The value of `execute`."""

from __future__ import annotations

from typing import Any

from hpcviews.client.metadata import Metadata

TEXT_SHOWN_MAX = 32


class ExecuteReply:
    """What executing a piece of code on one engine gave. Everything is an attribute and a key.

    Attributes:
        execution_count: How many pieces the engine has executed that were not silent.
        source: The code.
        text: repr() of the value of a last expression, or None.
        data: That value as MIME types and contents; empty without one.
        execute_result: The same with its metadata and count, as Jupyter has it; None without a value.
        metadata: Metadata of the request; its values are attributes here too: stdout, stderr, outputs, engine_id,
            status.
    """

    def __init__(self, value: dict[str, Any], metadata: Metadata):
        self.execution_count: int = value["execution_count"]
        self.source: str = value["source"]
        self.data: dict[str, Any] = value["data"]
        self.text: str | None = self.data.get("text/plain")
        self.execute_result: dict[str, Any] | None = None
        if self.data:
            self.execute_result = {
                "data": self.data,
                "metadata": value["metadata"],
                "execution_count": self.execution_count,
            }
        self.metadata = metadata

    @classmethod
    def decode(cls, value: dict[str, Any], metadata: Metadata) -> ExecuteReply:
        """Make one from the engine's answer."""
        return cls(value, metadata)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "metadata":
            raise AttributeError(name)
        return getattr(self.metadata, name)

    def __getitem__(self, key: str) -> Any:
        try:
            return getattr(self, key)
        except AttributeError:
            raise KeyError(key) from None

    def __repr__(self) -> str:
        text = self.text or ""
        if len(text) > TEXT_SHOWN_MAX:
            text = text[: TEXT_SHOWN_MAX - 3] + "..."
        return f"<ExecuteReply[{self.execution_count}]: {text}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        """In a notebook it looks like the value."""
        if self.execute_result is None:
            return {"text/plain": repr(self)}
        return self.data, self.execute_result["metadata"]
