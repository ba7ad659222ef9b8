"""The group of processes, tested within one process: options, messages and lost processes."""

import json
import math
import os
import signal
import socket
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.cli import cluster as flags
from ppo_jax.config import ConfigError
from ppo_jax.runs import checkpoint, cluster, devices, global_arrays, loop
from ppo_jax.runs.cluster import group as groups
from ppo_jax.runs.cluster import start, watch
from ppo_jax.runs.cluster.group import Group
from ppo_jax.runs.cluster.options import ClusterOptions, Place, check_address, place_of
from ppo_jax.runs.cluster.watch import LONG_WORK, Watch, Work
from ppo_jax.runs.job import RunFailed
from ppo_jax.runs.options import KeepOptions
from ppo_jax.runs.signals import Signals

HERE = {"coordinator": "127.0.0.1:12321", "num_processes": 2, "process_id": 1}


class Texts:
    """A board for processes that are simulated by threads."""

    def __init__(self):
        self.texts, self.answers = {}, True

    def put(self, name, text):
        self.texts[name] = text

    def all(self, folder):
        if not self.answers:
            raise RuntimeError("gone")
        found = {n.rpartition("/"): text for n, text in [*self.texts.items()]}
        return {name: text for (where, _, name), text in found.items() if where == folder}

    def wait(self, name, seconds):
        until = time.monotonic() + seconds
        while name not in self.texts and time.monotonic() < until:
            time.sleep(0.001)
        return self.texts.get(name)

    def forget(self, name):
        self.texts.pop(name, None)


def groups_of(size, heartbeat=10.0):
    """Groups that share a board, without supervision."""
    board = Texts()
    return [Group(r, size, heartbeat, Watch(board, r, size, heartbeat)) for r in range(size)]


@pytest.mark.parametrize(
    "given, said",
    [
        ({"coordinator": "node1"}, "must be HOST:PORT"),
        ({"coordinator": "node1:x"}, "must be HOST:PORT"),
        ({"coordinator": "2001:db8::1:12321"}, "must be HOST:PORT"),
        ({"coordinator": "node1:70000"}, "the port must be 1 to 65535"),
        ({"coordinator": "node1:0"}, "the port must be 1 to 65535"),
        ({"coordinator": "0.0.0.0:12321"}, "is not the address of one interface"),
        ({"coordinator": "[::]:12321"}, "is not the address of one interface"),
        ({"coordinator": ":12321"}, "is not the address of one interface"),
        ({"coordinator": "[::0]:12321"}, "is not the address of one interface"),
        ({"coordinator": "[::ffff:0.0.0.0]:12321"}, "is not the address of one interface"),
        ({"coordinator": "[::1:12321"}, "must be HOST:PORT"),
        ({"coordinator": None}, "needs --coordinator HOST:PORT"),
        ({"coordinator": None, "distributed": True}, "needs --coordinator HOST:PORT"),
        ({"num_processes": None}, "needs --num-processes"),
        ({"process_id": None}, "needs --process-id"),
        ({"process_id": 2}, "it must be 0 to 1"),
        ({"process_id": -1}, "process_id"),
        ({"num_processes": 0}, "num_processes"),
        ({"heartbeat": 1.0}, "heartbeat"),
        ({"heartbeat": math.inf}, "heartbeat"),
        ({"heartbeat": math.nan}, "heartbeat"),
        ({"start_timeout": 0.0}, "start_timeout"),
    ],
)
def test_what_does_not_belong_together_is_refused(given, said):
    options = HERE | given
    if options["coordinator"] is None and not options.get("distributed"):
        said = "needs --coordinator HOST:PORT" if "distributed" in given else "give --distributed"
    with pytest.raises(ConfigError, match=said):
        place_of(ClusterOptions(**options))


@pytest.mark.parametrize("name", ["heartbeat", "start_timeout"])
def test_options_of_several_processes_are_refused_for_one(name):
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} is for several processes"):
        place_of(ClusterOptions(**{name: 5.0}))


def test_the_place_of_a_process():
    assert place_of(ClusterOptions()) is None
    assert place_of(ClusterOptions(**HERE, heartbeat=8.0)) == Place("127.0.0.1:12321", 2, 1, 8, 10)
    assert place_of(ClusterOptions(distributed=True)) == Place(None, None, None, 100, 125)
    v6 = place_of(ClusterOptions(**HERE | {"coordinator": "[::1]:12321"}))
    assert v6.coordinator == "[::1]:12321"


def test_an_address_that_nobody_has_is_waited_for_and_refused(monkeypatch, capsys):
    asked = []

    def unknown(*_, **__):
        asked.append(time.monotonic())
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConfigError, match=r"the host name 'no\.such\.host' cannot be resolved"):
        check_address(Place("no.such.host:12321", 2, 1, 8, 0.2))
    assert len(asked) > 1
    assert capsys.readouterr().err.count("the host name 'no.such.host' cannot be resolved yet") == 1


def test_process_0_listens_only_where_it_can(unused_port):
    here = Place(f"127.0.0.1:{unused_port}", 2, 0, 8, 8)
    check_address(here)
    nobodys = here._replace(coordinator=f"192.0.2.1:{unused_port}", start_timeout=0.1)
    with pytest.raises(RunFailed, match=r"process 0 cannot listen at 192\.0\.2\.1"):
        check_address(nobodys)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", unused_port))
        busy.listen()
        threading.Timer(0.3, busy.close).start()
        check_address(here)  # waits until the port is free
    check_address(here._replace(coordinator=f"192.0.2.1:{unused_port}", rank=1))


@pytest.fixture
def unused_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_joining_after_a_computation_is_refused():
    jnp.zeros(1).block_until_ready()
    with pytest.raises(ConfigError, match="JAX has already initialised its devices"):
        cluster.join(ClusterOptions(**HERE))
    assert cluster.current().size == 1


def test_slurm_says_who_is_who(monkeypatch):
    said = {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_NODELIST": "node[003-010]",
        "SLURM_NTASKS": "8",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "0",
    }
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "0")
    found = start.found(place_of(ClusterOptions(distributed=True)))
    assert found == Place("node003:61517", 8, 5, 100, 125)
    monkeypatch.setattr(start.socket, "getaddrinfo", lambda *_: [(0, 0, 0, "", ("10.1.0.3", 0))])
    assert start.bind_address(found) == "node003:61517"
    # A common entry of /etc/hosts, at which other machines cannot reach this one.
    monkeypatch.setattr(start.socket, "getaddrinfo", lambda *_: [(0, 0, 0, "", ("127.0.1.1", 0))])
    assert start.bind_address(found) is None


def test_without_a_scheduler_the_processes_have_to_be_named(monkeypatch):
    for name in [n for n in os.environ if n.startswith(("SLURM_", "OMPI_", "KUBERNETES_"))]:
        monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match="did not find SLURM, Kubernetes, Cloud TPU or Open MPI"):
        start.found(place_of(ClusterOptions(distributed=True)))


@pytest.mark.parametrize(
    "words, said",
    [
        (["--num-processes", "two"], "--num-processes is 'two'; it must be a number"),
        (["--process_id", "1.5"], "--process-id is '1.5'; it must be a number"),
        (["--coordinator"], "expected one argument"),
    ],
)
def test_flags_that_are_no_numbers(words, said):
    with pytest.raises(ConfigError, match=said):
        flags.options_of(words)


def test_flags_of_a_command_line_with_others():
    words = ["--env", "CartPole-v1", "--coordinator=a:1", "--num_processes", "2", "--seed", "3"]
    found = flags.options_of([*words, "--process-id", "0", "--heartbeat", "5"])
    assert found == ClusterOptions(False, "a:1", 2, 0, 5.0)


@pytest.mark.parametrize("word", ["--distributed", "--coordinator=a:1", "--num_processes"])
def test_commands_of_one_process_refuse_the_flags(word):
    with pytest.raises(ConfigError, match="rlhf works in one process; start it alone"):
        flags.refuse(["sft", word], "rlhf", "start it alone")
    flags.refuse(["sft", "--model", "distributed"], "rlhf", "start it alone")


def test_several_processes_take_all_their_devices():
    assert devices.of_processes("all", 1) == jax.device_count()
    with pytest.raises(ConfigError, match="not divisible by 2 processes"):
        devices.of_processes("3", 2)
    with pytest.raises(ConfigError, match="all of them are used"):
        devices.of_processes("many", 1)
    with pytest.raises(ConfigError, match="each process must have the same number"):
        devices.of_processes("all", 2)  # only this process exists


# --- commands of process 0 ------------------------------------------------------------------------


def test_the_others_hear_of_every_program_in_order():
    lead, other = groups_of(2)
    ran = []
    chunk = lead.leading(lambda state, floats, count: ran.append(int(count)) or state)
    chunk(jnp.zeros(1), {}, jnp.int32(7))
    lead.tell("gather")
    lead.tell("end", code=143)
    assert ran == [7]
    assert [other.next() for _ in range(3)] == [
        {"do": "chunk", "count": 7},
        {"do": "gather"},
        {"do": "end", "code": 143},
    ]


def test_what_all_have_read_is_forgotten():
    lead, _ = groups_of(2)
    for _ in range(groups.KEPT_COMMANDS + 3):
        lead.tell("gather")
    assert sorted(lead.board.texts)[:1] != ["command/1"]
    assert len(lead.board.texts) == groups.KEPT_COMMANDS


def test_different_commands_are_refused_with_the_process_and_the_value():
    lead, one, two = groups_of(3)
    one.agree("commands", {"seed": 1, "env_args": ()})
    two.agree("commands", {"seed": 2, "env_args": ()})
    with pytest.raises(ConfigError, match="seed is 1 in process 0 and 2 in process 2"):
        lead.agree("commands", {"seed": 1, "env_args": ()})


def test_different_first_states_are_refused():
    lead, other = groups_of(2)
    state = {"x": jnp.arange(3.0), "key": jax.random.key(0)}
    other.same_state(4, state)
    lead.same_state(4, state)
    other.same_state(4, {**state, "key": jax.random.key(1)})
    with pytest.raises(ConfigError, match="different initial states: state is"):
        lead.same_state(4, state)
    other.same_state(3, state)
    with pytest.raises(ConfigError, match="update is 4 in process 0 and 3 in process 1"):
        lead.same_state(4, state)


def test_the_first_update_waits_until_all_have_compiled():
    """Otherwise processes that are ready early would consider the others to be hanging."""
    lead, other = groups_of(2)
    done = []
    thread = threading.Thread(target=lambda: (lead.ready(), done.append(time.monotonic())))
    thread.start()
    time.sleep(0.1)
    compiled = time.monotonic()
    assert lead.watch._work.limit > 600
    other.ready()
    thread.join(5)
    assert done[0] >= compiled


def test_environments_of_the_host_and_debugging_are_refused(monkeypatch):
    from test_loop import JOB

    monkeypatch.setattr(groups, "_group", groups_of(2)[0])
    loop.check(JOB, KeepOptions())
    with pytest.raises(ConfigError, match=r"uses Gymnasium \(Python\) environments"):
        loop.check(JOB._replace(pure=False), KeepOptions())
    refused = pytest.raises(ConfigError, match=r"--debug-nans .* repeats an update in one process")
    with refused:
        loop.check(JOB, KeepOptions(debug_nans=True))
    with refused, jax.debug_nans(True):
        loop.check(JOB, KeepOptions())


def test_processes_that_were_joined_by_others_are_refused(monkeypatch):
    from test_loop import JOB

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"use --distributed, or `with cluster\.joined\(\)"):
        loop.check(JOB, KeepOptions())


def test_orbax_takes_a_process_for_the_only_one(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with checkpoint._alone():
        assert (jax.process_count(), jax.process_index()) == (1, 0)
    assert (jax.process_count(), jax.process_index()) == (2, 1)


def test_arrays_of_one_process_stay_as_they_are():
    tree = {"x": jnp.arange(4.0), "key": jax.random.key(3)}
    spread = jax.tree.map(lambda x: global_arrays.spread(x, x.sharding), tree)
    for found in (spread, global_arrays.gather(tree), global_arrays.own(tree)):
        assert groups.digest(found) == groups.digest(tree)


@pytest.mark.parametrize(
    "text, lost",
    [
        ("Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:5", True),
        ("NCCL operation ncclAllReduce failed: remote process exited", True),
        ("UNAVAILABLE: Socket closed", True),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 10 bytes", False),
        ("error calling callback: ValueError", False),
    ],
)
def test_a_program_that_failed_for_another_process(text, lost):
    assert global_arrays.lost_peer(RuntimeError(text)) == lost


# --- lost processes -------------------------------------------------------------------------------


def watched(rank, size=3, heartbeat=10.0):
    found = Watch(Texts(), rank, size, heartbeat)
    found._seen = {r: ("", time.monotonic()) for r in found._others}
    return found


def test_a_process_whose_number_stands_still_is_lost():
    lead, now = watched(0), time.monotonic()
    lead.board.texts |= {"alive/1": "1", "alive/2": "1"}
    lead._exchange("1")
    lead._answered = now + 20
    assert lead.wrong(now + 9) == ""
    lead.board.texts["alive/1"] = "2"
    lead._seen[1] = ("2", now + 12)
    assert lead.wrong(now + 11) == (
        "process 2 has shown no sign of life for 11 s: dead, frozen or cut off"
    )
    assert lead.wrong(now + 23).startswith("processes 1, 2 have shown no sign of life")


def test_the_others_notice_that_process_0_is_lost():
    other, now = watched(2), time.monotonic()
    other.board.texts["lead/0"] = "1"
    other._exchange("1")
    assert other.wrong(now + 9) == ""
    assert "process 0 has not responded for 11 s" in other.wrong(other._answered + 11)
    other._answered = now + 20  # the service responds, but the counter does not change
    assert other.wrong(now + 11).startswith("process 0 has shown no sign of life")
    assert "process 1" not in other.board.all("lead")


def test_work_that_takes_longer_than_the_heartbeat():
    lead, now = watched(0), 1000.0
    lead._answered, lead._seen = now, {}
    lead._work = Work("in a callback", now, 10.0)
    assert lead.wrong(now + 9) == ""
    assert lead.wrong(now + 11).startswith("process 0 has been in a callback for 11 s")


def test_who_waits_is_patient_with_who_hangs():
    found = watched(0)
    work = Work("in an update", 0.0, 10.0, shared=True)
    assert found._slow(work, 11.0) == ""
    assert found._slow(work, 13.0).startswith("process 0 has waited for the others in an update")
    seen = []

    def look(x):
        other = threading.Thread(target=lambda: seen.append(found._slow(work, 11.0)))
        other.start()
        other.join()
        return np.float32(0)

    shape = jax.ShapeDtypeStruct((), jnp.float32)
    jax.block_until_ready(jax.jit(lambda x: jax.pure_callback(look, shape, x))(jnp.float32(1)))
    assert "in a Python function that its program calls (test_cluster.py, line" in seen[0]
    assert watch.function_called() == ""


def test_why_jax_aborts_a_process(unused_port):
    found = Watch(Texts(), 1, 2, 8, coordinator=("127.0.0.1", unused_port))
    assert found.aborted() == "process 0 has ended"
    with socket.create_server(("127.0.0.1", unused_port)):
        assert found.aborted().startswith("process 1 of 2 was ended by JAX: another process")
    assert Watch(Texts(), 0, 2, 8).aborted().startswith("process 0 of 2 was ended by JAX")


def test_signals_of_the_others_reach_process_0():
    lead, other = watched(0, 2), watched(1, 2)
    other.board = lead.board
    lead.signals, other.signals = Signals(), Signals()
    other.signals.note(signal.SIGTERM)
    other._exchange("1")
    lead._exchange("1")
    assert lead.signals.exit_code == 143
    lead.signals.note(signal.SIGINT)
    assert lead.signals.exit_code == 143  # the first signal determines the code


@pytest.mark.parametrize("kind", [ValueError, jax.errors.JaxRuntimeError])
def test_whatever_a_lost_process_fails_with_waits_for_its_name(monkeypatch, kind):
    """JAX raises one of two errors; the watch, which detects the lost process, ends this one."""
    waited = []
    monkeypatch.setattr(groups.time, "sleep", waited.append)
    group = groups_of(2)[0]

    def lost(*_):
        raise kind("UNKNOWN: Gloo AllGather failed: Connection closed by peer")

    def wrong(*_):
        raise kind("a shape")

    monkeypatch.setattr(global_arrays, "gather", lost)
    for call in (lambda: group.gathered({}), lambda: group.run(lost)):
        with pytest.raises(RunFailed, match="Connection closed"):
            call()
    assert waited == [15.0, 15.0]
    with pytest.raises(kind, match="a shape"):
        group.run(wrong)


def test_work_within_work_begins_anew():
    found = watched(0)
    with found.at("between two updates"):
        first = found._work
        with found.at("saving", 30.0):
            assert (found._work.what, found._work.limit) == ("saving", 30.0)
        assert found._work.what == "between two updates"
        assert found._work.since > first.since
    assert found._work.limit == LONG_WORK


def test_all_end_with_the_line_of_the_first(monkeypatch, capfd):
    lead, other = watched(0, 2), watched(1, 2)
    other.board, ended = lead.board, []
    monkeypatch.setattr(watch.os, "_exit", lambda code: ended.append(code))
    other.advice = lambda: "nothing is saved"
    other.end("process 1 hangs", 1)
    lead._exchange("1")
    assert ended == [1, 1]
    assert capfd.readouterr().err.splitlines() == [
        "error: process 1 hangs; nothing is saved",
        "error: process 1 hangs",
    ]
    assert json.loads(lead.board.texts["end/1"]) == {
        "text": "process 1 hangs",
        "code": 1,
        "rank": 1,
    }


def test_a_board_that_does_not_answer_holds_nobody_up(monkeypatch, capfd):
    other, ended = watched(1, 2), []
    other._answered = -100.0
    other.board.put = lambda *_: time.sleep(100)
    monkeypatch.setattr(watch.os, "_exit", lambda code: ended.append(code))
    started = time.monotonic()
    other.end("process 0 is lost", 1)
    assert ended == [1]
    assert time.monotonic() - started < 1
    capfd.readouterr()


def test_processes_that_end_together_wait_for_each_other(monkeypatch):
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: None)
    lead, other = groups_of(2)
    lead.tell("end", code=143)
    assert other.next()["code"] == 143
    thread = threading.Thread(target=other.leave, args=("", 143))
    thread.start()
    lead.leave("", 143)
    thread.join(5)
    assert lead.board.all("done") == {"0": "143", "1": "143"}
