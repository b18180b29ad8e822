"""Jobs that stay for a while so that people can look into them.

The job's own shell does it: it works wherever there is `sh`, needs nobody while it waits, and what
it does is in the job's command for all to see.
"""

from __future__ import annotations

from collections.abc import Sequence

from hatoba.v1 import job_pb2

HELD = "hatoba-hold"
INTERACTIVE = "hatoba-interactive"
LOGIN = "command -v bash >/dev/null && exec bash; exec sh"
"""A shell, the better one that there is."""
# Naps are of one second: a signal that meets a fork of the shell before its exec is lost.
# A `wait` that a signal breaks tells the signal's code, also where the child has ended meanwhile:
# it is asked again, and says 127 where it had told all already.
_HOLD = """hold=$1; nap=; shift
case $1 in *.py) set -- python "$@";; esac
child=; stopped=; code=
trap 'stopped=1$stopped; kill -TERM $child 2>/dev/null' TERM
"$@" &
child=$!
[ -z "$stopped" ] || kill -TERM $child
while :; do
  was=$stopped; wait $child; now=$?
  [ $now -ne 127 ] || [ -z "$code" ] || break
  code=$now
  [ "$was" != "$stopped" ] || break
done
if [ $code -eq 0 ] || [ -n "$stopped" ]; then exit $code; fi
trap 'kill $nap 2>/dev/null; exit $code' TERM
echo "hatoba: exit code $code; its place is kept for $hold s: \\`hatoba jobs exec\\` looks in, \
\\`hatoba jobs cancel\\` lets go" >&2
while [ $hold -gt 0 ]; do sleep 1 & nap=$!; wait $nap; hold=$((hold - 1)); done
exit $code"""
_STAY = """nap=
trap 'kill $nap 2>/dev/null; exit 0' TERM
left=$1
while [ $left -gt 0 ]; do
  sleep 1 & nap=$!; wait $nap
  left=$((left - 1))
  if [ -e .hatoba-visited ]; then rm -f .hatoba-visited; left=$1; fi
done"""
_VISIT = """while kill -0 $$ 2>/dev/null && touch .hatoba-visited 2>/dev/null; do sleep 1; done \
  </dev/null >/dev/null 2>&1 &
exec "$@\""""


def held(command: Sequence[str], seconds: float) -> list[str]:
    """The command of a job that keeps its place for so long when this one fails.

    It ends with this one's exit code, at once when all went well or when it was asked to end.
    """
    return ["sh", "-c", _HOLD, HELD, str(max(1, round(seconds))), *command]


def staying(seconds: float) -> list[str]:
    """The command of a job that only waits for visitors, and ends well when none was there for so
    long."""
    return ["sh", "-c", _STAY, INTERACTIVE, str(max(1, round(seconds)))]


def visiting(spec: job_pb2.JobSpec, command: Sequence[str]) -> list[str]:
    """A command for a running job, which tells one that waits for visitors that there is one."""
    if list(spec.command[3:4]) == [INTERACTIVE]:
        return ["sh", "-c", _VISIT, INTERACTIVE, *command]
    return list(command)
