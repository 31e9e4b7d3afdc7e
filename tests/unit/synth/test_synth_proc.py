"""The procfs table: every answer, and what the renderers make of a small virtual machine."""

from __future__ import annotations

import errno
import os
import stat

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from detbox.synth import net, proc, root, sysctl, tasks
from detbox.synth.table import Answer, Reader, RealFile, Refused, Synthetic
from detbox.synth.view import MachineView, ProcessView, ThreadView
from tests.unit.synth.synth_guest import AUXV, machine, reader


def read(path: str, view: MachineView | None = None, read_real: Reader = reader) -> bytes:
    answer = proc.render(path.encode(), view or machine(), read_real)
    assert isinstance(answer, Synthetic), (path, answer)
    return answer.data


def every_path() -> list[str]:
    """A path for each row: for a process, one of its threads and the process without files."""
    paths = [f"/proc/{row.name}" for row in (*root.ROWS, *sysctl.ROWS) if "*" not in row.name]
    for task in ("/proc/17", "/proc/17/task/18", "/proc/1", "/proc/18"):
        paths += [f"{task}/{row.name.replace('*', '0')}" for row in tasks.ROWS]
        paths += [f"{task}/net/{row.name.replace('*', 'x')}" for row in net.ROWS]
    return paths


@pytest.mark.parametrize("rows", [root.ROWS, sysctl.ROWS, tasks.ROWS, net.ROWS])
def test_each_row_says_why_and_one_thing(rows: tuple[proc.Row, ...]) -> None:
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert row.why and [row.render is not None, row.real, bool(row.refuse)].count(True) == 1, row.name


def test_contents_do_not_depend_on_anything_else() -> None:
    first = {path: proc.render(path.encode(), machine(), reader) for path in every_path()}
    assert first == {path: proc.render(path.encode(), machine(), reader) for path in every_path()}
    assert {type(answer) for answer in first.values()} == {Synthetic, RealFile, Refused}


def test_listed_means_openable() -> None:
    view = machine()

    def walk(path: bytes) -> int:
        own = path.rpartition(b"/")[2].decode() in proc.DYNAMIC
        names = proc.listing(path, [] if own else [b"environ", b"cmdline", b"limits"], view)
        assert len(set(names)) == len(names)
        seen = 0
        for name in names:
            mode = proc.mode(path + b"/" + name, view)
            assert mode is not None, (path, name)
            if stat.S_ISDIR(mode):
                seen += walk(path + b"/" + name)
                continue
            answer = proc.render(path + b"/" + name, view, reader)
            assert not isinstance(answer, Refused) or path.startswith(b"/proc/1"), (path, name)
            seen += 1
        return seen

    assert walk(b"/proc") > 1000


@pytest.mark.parametrize(
    ("path", "code", "unknown"),
    [
        ("/proc/brand-new", errno.ENOENT, True),
        ("/proc/17/brand-new", errno.ENOENT, True),
        ("/proc/17/net/brand_new", errno.ENOENT, True),
        ("/proc/sys/kernel/brand_new", errno.ENOENT, False),
        ("/proc/99/stat", errno.ENOENT, False),
        ("/proc/17/task/99/stat", errno.ENOENT, False),
        ("/proc/17/task/18/task/18", errno.ENOENT, True),
        ("/proc/kmsg", errno.EPERM, False),
        ("/proc/kcore", errno.EACCES, False),
        ("/proc/fs/ext4/vda/mb_groups", errno.ENOENT, False),
        ("/proc/bus/pci/devices", errno.ENOENT, False),
        ("/proc/17/pagemap", errno.EPERM, False),
        ("/proc/1/environ", errno.EACCES, False),
        ("/proc/1/fdinfo/3", errno.EACCES, False),
        ("/proc/1/mem", errno.EACCES, False),
    ],
)
def test_refusals(path: str, code: int, unknown: bool) -> None:
    assert proc.render(path.encode(), machine(), reader) == Refused(code, unknown)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/proc/17/comm", RealFile()),
        ("/proc/17/uid_map", Synthetic(b"         0          0 4294967295\n", sink=True)),
        ("/proc/17/setgroups", Synthetic(b"allow\n", sink=True)),
        ("/proc/17/mem", RealFile()),
        ("/proc/17/oom_score_adj", Synthetic(b"0\n", sink=True)),
        ("/proc/sys/kernel/hostname", Refused(errno.EACCES)),
        ("/proc/17/stat", Refused(errno.EACCES)),
        ("/proc/1/comm", Refused(errno.EACCES)),
        ("/proc/17/fd", Refused(errno.EISDIR)),
    ],
)
def test_writing(path: str, expected: Answer) -> None:
    assert proc.render(path.encode(), machine(), reader, write=True, memory=lambda: True) == expected


@pytest.mark.parametrize("allowed", [True, False])
def test_memory_is_open_to_who_may_debug_the_process(allowed: bool) -> None:
    for write in (True, False):
        answer = proc.render(b"/proc/17/mem", machine(), reader, write=write, memory=lambda: allowed)
        assert answer == (RealFile() if allowed else Refused(errno.EACCES))
    assert proc.render(b"/proc/1/mem", machine(), reader, memory=lambda: True) == Refused(errno.EACCES)
    for name in (b"maps", b"smaps", b"environ", b"auxv"):
        answer = proc.render(b"/proc/17/" + name, machine(), reader, memory=lambda: allowed)
        assert (answer == Refused(errno.EACCES)) is not allowed


def test_a_thread_has_a_directory_of_its_own_number() -> None:
    """It is not listed, and shows the thread, but the times of the whole process."""
    assert b"\nPid:\t18\n" in read("/proc/18/status") and b"\nTgid:\t17\n" in read("/proc/18/status")
    assert read("/proc/18/stat").startswith(b"18 (")
    assert read("/proc/17/stat").startswith(b"17 (")


def test_directory_order() -> None:
    names = proc.listing(b"/proc", [b"99", b"kcore", b"acpi"], machine())
    assert names[-3:] == [b"1", b"2", b"17"]
    assert names[:-3] == sorted(names[:-3])
    assert {b"self", b"thread-self", b"meminfo", b"sys", b"mounts", b"net"} <= set(names)
    assert not {b"kcore", b"acpi", b"99", b"18"} & set(names)
    assert proc.listing(b"/proc/17/task", [], machine()) == [b"17", b"18"]
    assert proc.listing(b"/proc/17/fd", [b"10", b"9", b"0"], machine()) == [b"0", b"9", b"10"]
    assert proc.listing(b"/proc/1/fd", [b"3"], machine()) == []
    assert b"limits" in proc.listing(b"/proc/17", [b"limits"], machine())
    assert proc.listing(b"/proc/99", [b"x"], machine()) == []


def test_stat_has_52_fields_and_the_thread_its_own_times() -> None:
    whole = read("/proc/17/stat").split()
    thread = read("/proc/17/task/18/stat").split()
    assert len(whole) == len(thread) == 52
    assert whole[:4] == [b"17", b"(sleep)", b"S", b"2"] and thread[:2] == [b"18", b"(worker)"]
    assert (whole[13], thread[13]) == (b"150", b"7")
    assert (whole[21], thread[21]) == (b"200", b"210")
    assert whole[27] == b"140737488346112"  # start of the stack, from a comm that contains ") "


def test_maps_hide_host_numbers_and_kernel_pages() -> None:
    text = read("/proc/17/maps")
    assert b"[vdso]" not in text and b"vsyscall" not in text and b"fe:00" not in text
    line = text.splitlines()[0]
    assert line == b"555555554000-555555558000 r--p 00000000 00:32 5711".ljust(73) + b"/usr/bin/sleep"
    rss = sum(int(part.split()[1]) for part in read("/proc/17/smaps").splitlines() if part[:4] == b"Rss:")
    assert f"VmRSS:\t{rss:8d} kB" in read("/proc/17/status").decode()
    assert int(read("/proc/17/statm").split()[1]) * 4 == rss


def test_auxv_is_the_program_s_and_not_the_kernel_s() -> None:
    assert read("/proc/17/auxv") == AUXV
    assert read("/proc/2/auxv") == b""


def test_relocated_data_counts_as_changed() -> None:
    maps = b"".join(
        b"%x-%x r--p 00000000 fe:00 5711                     /usr/bin/sleep\n" % (start, start + 0x1000) + flags
        for start, flags in ((0x10000, b"VmFlags: rd mr mw me \n"), (0x20000, b"VmFlags: rd mr mw me ac \n"))
    )
    answer = proc.render(b"/proc/17/smaps", machine(), lambda path: maps)
    assert isinstance(answer, Synthetic)
    text = answer.data
    changed = [line.split()[1] for line in text.splitlines() if line.startswith((b"Anonymous:", b"Private_Dirty:"))]
    assert changed == [b"0", b"0", b"4", b"4"]
    assert text.count(b"VmFlags: rd mr mw me \n") == text.count(b"VmFlags: rd mr mw me ac \n") == 1


@pytest.mark.parametrize(
    ("area", "shown"),
    [
        (b"7ffff0000000-7ffff0004000 rwxp", b""),
        # The kernel has joined a mapping of the guest's with the one above it.
        (b"7fffefffe000-7ffff0004000 rwxp", b"7fffefffe000-7ffff0000000 rwxp"),
        (b"7fffefffe000-7ffff0000000 rwxp", b"7fffefffe000-7ffff0000000 rwxp"),
        (b"7ffff0004000-7ffff0005000 rwxp", b"7ffff0004000-7ffff0005000 rwxp"),
    ],
)
def test_detbox_s_own_memory_is_not_in_maps(area: bytes, shown: bytes) -> None:
    view = machine()
    program = view.processes[17]._replace(own_memory=(0x7FFFF0000000, 0x7FFFF0004000))
    view = view._replace(processes={17: program})
    answer = proc.render(b"/proc/17/maps", view, lambda path: area + b" 00000000 00:00 0 \n")
    assert isinstance(answer, Synthetic)
    assert answer.data[: len(shown) or 1] == shown and answer.data.count(b"\n") == bool(shown)


def test_counted_loops_are_not_in_maps() -> None:
    """Pages of a program's code that are another file's look like its own, wherever they are in it."""
    other = b"00:01 7 /memfd:detbox-loops (deleted)"
    last = b"00409000-0040b000 r--p 00009000 08:01 5 /bin/program\n"
    whole = b"00400000-00409000 r-xp 00000000 08:01 5 /bin/program\n" + last
    pieces = (
        b"000ff000-00100000 rw-p 00000000 " + other + b"\n"
        b"00100000-00102000 r-xp 00005000 " + other + b"\n"
        b"00400000-00402000 r-xp 00000000 08:01 5 /bin/program\n"
        b"00402000-00404000 r-xp 00001000 " + other + b"\n"
        b"00404000-00405000 r-xp 00004000 08:01 5 /bin/program\n"
        b"00405000-00408000 r-xp 00004000 " + other + b"\n"
        b"00408000-00409000 r-xp 00008000 08:01 5 /bin/program\n" + last
    )

    def shown(text: bytes) -> bytes:
        answer = proc.render(b"/proc/17/maps", machine(), lambda path: text)
        assert isinstance(answer, Synthetic)
        return answer.data

    assert shown(pieces) == shown(whole) != b""
    # Two parts of a file that are beside each other, and not in the file, are two mappings.
    moved = whole.replace(last, last.replace(b"r--p 00009000", b"r-xp 0000a000"))
    assert shown(moved).count(b"\n") == 2


def test_sockets_are_sorted_and_only_the_guests() -> None:
    lines = [line.split() for line in read("/proc/17/net/tcp").splitlines()[1:]]
    assert [(line[1], line[9]) for line in lines] == [(b"0100007F:1F90", b"1"), (b"0100007F:8000", b"3")]
    paths = [line.split(None, 7)[6:] for line in read("/proc/net/unix").splitlines()[1:]]
    assert paths == [[b"4"], [b"5", b"/tmp/my socket"]]


def test_times_agree() -> None:
    view = machine()
    boot = int(read("/proc/stat").split(b"btime ")[1].split()[0])
    assert boot == view.boot_time_s and read("/proc/uptime").startswith(b"10.00 ")
    user, nice, system, idle = (int(word) for word in read("/proc/stat").split()[1:5])
    assert user + nice + system + idle == view.cpus * 10 * 100
    per_cpu = [line.split() for line in read("/proc/stat").splitlines()[1:5]]
    assert [sum(int(line[at]) for line in per_cpu) for at in (1, 3, 4)] == [user, system, idle]


def test_fdinfo_drops_host_values() -> None:
    real = b"pos:\t5\nflags:\t02\nmnt_id:\t991\nino:\t123456\neventfd-count: 3\neventfd-id: 77\n"
    text = read("/proc/17/fdinfo/3", read_real=lambda path: real)
    assert text == b"pos:\t5\nflags:\t02\nmnt_id:\t20\neventfd-count: 3\n"


def test_uuid_is_version_4_and_from_the_stream() -> None:
    assert read("/proc/sys/kernel/random/uuid") == b"00010203-0405-4607-8809-0a0b0c0d0e0f\n"


def test_mounts_are_escaped() -> None:
    line = read("/proc/17/mountinfo").splitlines()[2]
    assert line == b"22 20 0:52 / /my\\040dir rw,noatime - tmpfs tmpfs rw,size=4k"
    assert read("/proc/17/mounts").splitlines()[2] == b"tmpfs /my\\040dir tmpfs rw,noatime,size=4k 0 0"


numbers = st.integers(min_value=0, max_value=2**64)
names = st.binary(max_size=40)
threads = st.builds(
    ThreadView, st.integers(1, 30000), names, st.text(max_size=1), st.just("1"), numbers, numbers, numbers,
    st.integers(-20, 19), numbers, numbers,
)  # fmt: skip


def by_number(views: list[ThreadView]) -> dict[int, ThreadView]:
    return {view.tid: view for view in views}


processes = st.builds(
    lambda *required, **given: ProcessView(*required, **given),  # hypothesis would fill the others, too
    st.just(17), numbers, numbers, numbers, names, exe=names, argv=st.lists(names, max_size=3),
    state=st.text(max_size=1), groups=st.lists(numbers, max_size=3), cap_effective=numbers,
    start_ticks=numbers, utime=numbers, stime=numbers, nice=st.integers(-20, 19), umask=numbers,
    tty=st.integers(0, 2**32), sig_caught=numbers, threads=st.lists(threads, max_size=3).map(by_number),
    hidden=st.booleans(),
)  # fmt: skip


@settings(max_examples=12, deadline=None)
@given(processes, st.binary(max_size=300), st.integers(1, 200), st.integers(0, 2**62))
def test_no_process_and_no_kernel_text_breaks_a_renderer(
    process: ProcessView, text: bytes, cpus: int, uptime_ns: int
) -> None:
    view = MachineView({17: process}, cpus=cpus, uptime_ns=uptime_ns)
    for path in every_path():
        proc.render(path.encode(), view, lambda path: text)
        proc.mode(path.encode(), view)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60))
@example(b"\xb2")  # a digit of Latin-1, which is no number
@example(b"task/\xb2")
def test_any_path_is_answered(path: bytes) -> None:
    for head in (b"/proc/", b"/proc/17/", b"/proc/17/task/18/", b"/proc/sys/"):
        proc.render(head + path, machine(), reader)
        proc.listing(head + path, [path], machine())
        proc.mode(head + path, machine())


def test_this_kernels_files_have_rows() -> None:
    """Whatever the machine that runs the tests has in /proc is known by name (as for a process 17)."""
    view, unknown = machine(), []
    skipped = ("sys", "task", "fd", "fdinfo", "map_files", "net")

    def compare(real: str, virtual: str, depth: int) -> None:
        try:
            names = os.listdir(real)
        except PermissionError:  # root's alone
            return
        for name in names:
            path = f"{real}/{name}"
            if os.path.islink(path) or name.isdigit() or name in skipped:
                continue
            if os.path.isdir(path) and depth:
                compare(path, f"{virtual}/{name}", depth - 1)
            elif not os.path.isdir(path):
                answer = proc.render(os.fsencode(f"{virtual}/{name}"), view, reader)
                if isinstance(answer, Refused) and answer.unknown:
                    unknown.append(f"{virtual}/{name}")

    compare("/proc", "/proc", 2)
    compare("/proc/self", "/proc/17", 1)
    assert unknown == []


def test_no_host_dependence_in_hidden_process() -> None:
    """The process without files is never read through the reader."""

    def forbidden(path: bytes) -> bytes:
        raise AssertionError(path)

    for row in tasks.ROWS:
        proc.render(b"/proc/1/" + row.name.replace("*", "0").encode(), machine(), forbidden)
    silent = machine()._replace(processes={1: machine().processes[1]})
    assert read("/proc/1/cmdline", silent, forbidden) == b"detbox-init\0"
