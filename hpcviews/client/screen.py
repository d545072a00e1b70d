"""Where things are shown to people: stdout, stderr, and IPython's displays if this process runs in IPython."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from hpcviews.errors import RemoteError

if TYPE_CHECKING:
    from hpcviews.client.replies import ExecuteReply


class Screen:
    """Writes to stdout, stderr and IPython's displays, and says where it comes from whenever that changes."""

    def __init__(self, has_prefixes: bool):
        self._has_prefixes = has_prefixes
        self._prefix = ""
        self._open_file: Any = None
        """What the last text was written to, if that did not end its line."""

    def write(self, kind: str, engine_id: int | None, text: str) -> None:
        """Text of a stream, stdout or stderr."""
        file = sys.stderr if kind == "stderr" else sys.stdout
        lead = self._begin(f"[{kind}:{engine_id}] ")
        if lead and "\n" in text.rstrip("\n"):
            lead += "\n"  # several lines look best below one another
        file.write(lead + text)
        file.flush()
        self._open_file = None if text.endswith("\n") else file

    def show(self, engine_id: int | None, output: dict[str, Any]) -> None:
        """Something that was displayed: MIME types and contents."""
        lead = self._begin(f"[output:{engine_id}]")
        self.end_line()
        if lead:
            sys.stdout.write(lead + "\n")
            sys.stdout.flush()
        publish(output["data"], output.get("metadata"))

    def show_reply(self, reply: ExecuteReply) -> None:
        """The value of executed code; None is not shown."""
        bundle = dict(reply.data)
        text = str(bundle.get("text/plain", ""))
        if not bundle:
            return
        self._begin("")
        self.end_line()
        label = f"Out[{reply.engine_id}:{reply.execution_count}]:"
        if set(bundle) == {"text/plain"}:
            gap = "\n" if "\n" in text else " "
            publish({"text/plain": f"{label}{gap}{text}"}, None)
            return
        sys.stdout.write(label + "\n")
        sys.stdout.flush()
        publish(bundle)

    def show_error(self, error: BaseException, engine_id: int, in_full: bool) -> None:
        """A failure, on stderr."""
        self._begin("")
        self.end_line()
        if not isinstance(error, RemoteError):
            text = (
                f"[{engine_id}] {type(error).__name__}: {error}"
                if engine_id >= 0
                else f"{type(error).__name__}: {error}"
            )
        elif in_full:
            text = "\n".join(error._render_traceback_())
        else:
            text = str(error).split("\n", 1)[0]
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def end(self) -> None:
        """No more comes."""
        self.end_line()

    def end_line(self) -> None:
        """What comes next begins on a new line."""
        if self._open_file is not None:
            self._open_file.write("\n")
            self._open_file.flush()
            self._open_file = None

    def _begin(self, prefix: str) -> str:
        """What to write first: nothing where it goes on where the last left off."""
        if prefix == self._prefix:
            return ""
        self.end_line()
        self._prefix = prefix
        return prefix if self._has_prefixes else ""


def find_shell() -> Any:
    """The IPython shell this process runs in, or None. Imports nothing: without a shell nobody has imported IPython."""
    ipython = sys.modules.get("IPython")
    find = getattr(ipython, "get_ipython", None)
    return None if find is None else find()


def publish(data: dict[str, Any], metadata: dict[str, Any] | None = None, **options: Any) -> None:
    """Display a MIME bundle, as what it is in IPython, else as text; `options` are those of IPython's publisher."""
    shell = find_shell()
    if shell is not None:
        shell.display_pub.publish(data=data, metadata=metadata or {}, **options)
        return
    sys.stdout.write(str(data.get("text/plain", f"<{', '.join(data)}>")) + "\n")
    sys.stdout.flush()
