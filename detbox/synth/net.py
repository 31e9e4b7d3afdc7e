"""The rows of /proc/net: a machine whose only interface is loopback.

Socket tables are the kernel's, sorted and without hash pointers, timers and sockets that no guest process has open.
Counters are zero: how many acknowledgements a transfer needs depends on real time.
"""

from __future__ import annotations

from detbox.synth import cpuinfo
from detbox.synth.table import Query, Renderer, Row, fixed, refused, synth

_SNMP = {
    "Ip": (
        "Forwarding DefaultTTL InReceives InHdrErrors InAddrErrors ForwDatagrams InUnknownProtos "
        "InDiscards InDelivers OutRequests OutDiscards OutNoRoutes ReasmTimeout ReasmReqds ReasmOKs "
        "ReasmFails FragOKs FragFails FragCreates"
    ),
    "Icmp": (
        "InMsgs InErrors InCsumErrors InDestUnreachs InTimeExcds InParmProbs InSrcQuenchs InRedirects "
        "InEchos InEchoReps InTimestamps InTimestampReps InAddrMasks InAddrMaskReps OutMsgs OutErrors "
        "OutDestUnreachs OutTimeExcds OutParmProbs OutSrcQuenchs OutRedirects OutEchos OutEchoReps "
        "OutTimestamps OutTimestampReps OutAddrMasks OutAddrMaskReps"
    ),
    "Tcp": (
        "RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab "
        "InSegs OutSegs RetransSegs InErrs OutRsts InCsumErrors"
    ),
    "Udp": (
        "InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti "
        "MemErrors"
    ),
    "UdpLite": (
        "InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti "
        "MemErrors"
    ),
}
_SNMP_CONSTANTS = {"Forwarding": 2, "DefaultTTL": 64, "RtoAlgorithm": 1, "RtoMin": 200, "RtoMax": 120000,
    "MaxConn": -1}
_NETSTAT = {
    "TcpExt": (
        "SyncookiesSent SyncookiesRecv SyncookiesFailed EmbryonicRsts PruneCalled RcvPruned OfoPruned "
        "OutOfWindowIcmps LockDroppedIcmps ArpFilter TW TWRecycled TWKilled PAWSActive PAWSEstab "
        "DelayedACKs DelayedACKLocked DelayedACKLost ListenOverflows ListenDrops TCPHPHits TCPPureAcks "
        "TCPHPAcks TCPTimeouts TCPLossProbes TCPAbortOnData TCPAbortOnClose TCPAbortOnMemory "
        "TCPAbortOnTimeout TCPSynRetrans TCPOrigDataSent TCPDelivered"
    ),
    "IpExt": (
        "InNoRoutes InTruncatedPkts InMcastPkts OutMcastPkts InBcastPkts OutBcastPkts InOctets OutOctets "
        "InMcastOctets OutMcastOctets InBcastOctets OutBcastOctets InCsumErrors InNoECTPkts InECT1Pkts "
        "InECT0Pkts InCEPkts"
    ),
}
_SNMP6 = (
    "Ip6InReceives Ip6InHdrErrors Ip6InTooBigErrors Ip6InNoRoutes Ip6InAddrErrors Ip6InUnknownProtos "
    "Ip6InTruncatedPkts Ip6InDiscards Ip6InDelivers Ip6OutForwDatagrams Ip6OutRequests Ip6OutDiscards "
    "Ip6OutNoRoutes Ip6InMcastPkts Ip6OutMcastPkts Ip6InOctets Ip6OutOctets Icmp6InMsgs Icmp6InErrors "
    "Icmp6OutMsgs Icmp6OutErrors Icmp6InCsumErrors Udp6InDatagrams Udp6NoPorts Udp6InErrors "
    "Udp6OutDatagrams Udp6RcvbufErrors Udp6SndbufErrors Udp6InCsumErrors Udp6IgnoredMulti "
    "Udp6MemErrors UdpLite6InDatagrams UdpLite6NoPorts UdpLite6InErrors UdpLite6OutDatagrams "
    "UdpLite6RcvbufErrors UdpLite6SndbufErrors UdpLite6InCsumErrors UdpLite6MemErrors"
).split()

_DEV = (
    "Inter-|   Receive                                                |  Transmit\n"
    " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls "
    "carrier"
    " compressed\n"
    "    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0 "
    "      0"
    "          0\n"
)
_FIB_TABLE = """\
  +-- 127.0.0.0/8 2 0 2
     +-- 127.0.0.0/31 1 0 0
        |-- 127.0.0.0
           /8 host LOCAL
        |-- 127.0.0.1
           /32 host LOCAL
     |-- 127.255.255.255
        /32 link BROADCAST
"""
_SIX_HEAD = (
    "  sl  local_address                         remote_address                        "
    "st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"
)
_FOUR_HEAD = "sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"
_DATAGRAM_TAIL = " ref pointer drops"
_GROUPS = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n"


def _zeros(groups: dict[str, str]) -> str:
    lines = []
    for group, names in groups.items():
        values = " ".join(str(_SNMP_CONSTANTS.get(name, 0)) for name in names.split())
        lines.append(f"{group}: {names}\n{group}: {values}\n")
    return "".join(lines)


def _inet(head: str, width: int, tail: bytes) -> Renderer:
    """A renderer of a table of IP sockets, sorted by address.

    Timers and queues are zero, because acknowledgements come in real time; sockets without a descriptor
    (time-wait, not yet accepted), and those that vanish with the next acknowledgement, are left out for the same
    reason, and whether our own end has been acknowledged is not told.
    """

    tcp = tail is _TCP

    def render(query: Query) -> bytes:
        rows = []
        for line in query.reader(query.path).splitlines()[1:]:
            words = line.split()
            if len(words) < 10 or not words[9].isdigit() or (tcp and words[3] in _VANISHING):
                continue
            held = query.view.socket(int(words[9]))
            if held is not None:
                rows.append((words[1], words[2], _FIN_WAIT.get(words[3], words[3]) if tcp else words[3], *held))
        lines = [head.encode().ljust(width) + b"\n"]
        for number, (local, remote, state, ino, uid) in enumerate(sorted(rows)):
            text = b"%4d: %s %s %s 00000000:00000000 00:00000000 00000000 %5d        0 %d" % (
                number, local, remote, state, uid, ino,
            )  # fmt: skip
            text += tail
            lines.append(text.ljust(width) + b"\n")
        return b"".join(lines)

    return render


_TCP = b" 1 0000000000000000 100 0 0 10 0"
#: States of include/net/tcp_states.h: CLOSE, LAST_ACK, CLOSING; FIN_WAIT1 becomes FIN_WAIT2.
_VANISHING = (b"07", b"09", b"0B")
_FIN_WAIT = {b"04": b"05"}
_UDP = b" 2 0000000000000000 0"


#: SS_CONNECTED of include/uapi/linux/net.h: the other side refers to the socket, too.
_CONNECTED = b"03"


def unix(query: Query) -> bytes:
    """/proc/net/unix of the guest's own sockets, in order of their inode numbers."""
    rows = []
    for line in query.reader(query.path).splitlines()[1:]:
        words = line.split(None, 7)
        if len(words) < 7 or not words[6].isdigit():
            continue
        held = query.view.socket(int(words[6]))
        if held is not None:
            rows.append((held[0], words))
    lines = [b"Num       RefCount Protocol Flags    Type St Inode Path\n"]
    for ino, words in sorted(rows, key=lambda row: row[0]):
        path = b" " + words[7] if len(words) > 7 else b""
        middle = b" ".join(words[2:6])
        users = 3 if words[5] == _CONNECTED else 2
        lines.append(b"0000000000000000: %08X %s %5d%s\n" % (users, middle, ino, path))
    return b"".join(lines)


def dev_snmp6(query: Query) -> bytes:
    """Loopback's IPv6 counters."""
    return f"{'ifIndex':<32s}\t1\n".encode() + snmp6(query)


def snmp6(query: Query) -> bytes:
    """IPv6 counters."""
    return "".join(f"{name:<32s}\t0\n" for name in _SNMP6).encode()


def _loopback(text: str, down: str | None = None) -> Renderer:
    """Addresses, routes and groups of the container's device.

    In a network of the guest's own they are its own doing, and the kernel's text is shown: or ``text`` if it is up and
    else ``down``, where that tells more.
    """

    def render(query: Query) -> bytes:
        up = None if query.process_or_none is None else query.process.loopback()
        if up is not None and down is None:
            return query.reader(query.path)
        return (text if up is not False else down or "").encode()

    return render


_HEADER = "only the heading: there are no entries on a machine with loopback alone"
_COUNTERS = "counters depend on real time: zero"
_SOCKETS = "the guest's sockets, sorted, with virtual inodes and without timers"

#: Paths relative to /proc/net (which is /proc/PID/net).
ROWS: tuple[Row, ...] = (
    synth("anycast6", _HEADER, fixed("")),
    synth("arp", _HEADER,
    fixed("IP address       HW type     Flags       HW address            Mask     Device\n")),
    synth("dev", _COUNTERS, fixed(_DEV)),
    synth("dev_mcast", _HEADER, fixed("")),
    synth("dev_snmp6/lo", _COUNTERS, dev_snmp6),
    synth("fib_trie", "loopback's routes", _loopback("Main:\n" + _FIB_TABLE + "Local:\n" + _FIB_TABLE)),
    synth("icmp", _HEADER, fixed("  " + _FOUR_HEAD + _DATAGRAM_TAIL + " " * 13 + "\n")),
    synth("icmp6", _HEADER, fixed(_SIX_HEAD + _DATAGRAM_TAIL + "\n")),
    synth("if_inet6", "loopback's address", _loopback("00000000000000000000000000000001 01 80 10 80       lo\n")),
    synth("igmp", "loopback's group", _loopback(
        _GROUPS + "1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n", _GROUPS)),
    synth("igmp6", "loopback's groups", fixed(
        "1    lo              ff020000000000000000000000000001     1 0000000C 0\n"
        "1    lo              ff010000000000000000000000000001     1 00000008 0\n")),
    synth("ip6_flowlabel", _HEADER,
    fixed("Label S Owner  Users  Linger Expires  Dst                              Opt\n")),
    synth("ip_mr_cache", _HEADER, fixed("Group    Origin   Iif     Pkts    Bytes    Wrong Oifs\n")),
    synth("ip_mr_vif", _HEADER,
    fixed("Interface      BytesIn  PktsIn  BytesOut PktsOut Flags Local    Remote\n")),
    synth("ip_tables_matches", _HEADER, fixed(""), mode=0o100440),
    synth("ip_tables_names", _HEADER, fixed(""), mode=0o100440),
    synth("ip_tables_targets", _HEADER, fixed(""), mode=0o100440),
    synth("ipv6_route", "loopback's route", _loopback(
        "00000000000000000000000000000001 80 " + "0" * 32 + " 00 " + "0" * 32
        + " 00000000 00000001 00000000 80200001       lo\n", "")),
    synth("mcfilter", _HEADER, fixed("Idx Device        MCA        SRC    INC    EXC\n")),
    synth("mcfilter6", _HEADER, fixed(
        "Idx Device                Multicast Address                   Source Address    INC    EXC\n")),
    synth("netlink", _HEADER, fixed(
        "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n")),
    synth("netstat", _COUNTERS, fixed(_zeros(_NETSTAT))),
    synth("packet", _HEADER, fixed("sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n")),
    synth("protocols", "the heading: sizes differ per kernel", fixed(
        "protocol  size sockets  memory press maxhdr  slab module     "
        "cl co di ac io in de sh ss gs se re sp bi br ha uh gp em\n")),
    synth("psched", "clock resolutions: constants", fixed("000003e8 00000040 000f4240 3b9aca00\n")),
    synth("ptype", "the IP handlers",
    fixed("Type Device      Function\n0800          ip_rcv\n86dd          ipv6_rcv\n")),
    synth("raw", _SOCKETS, _inet("  " + _FOUR_HEAD + _DATAGRAM_TAIL, 127, _UDP)),
    synth("raw6", _SOCKETS, _inet(_SIX_HEAD + _DATAGRAM_TAIL, 0, _UDP)),
    synth("route", _HEADER, _loopback(
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT".ljust(127)
        + "\n")),
    synth("rt6_stats", "one route", fixed("0001 0001 0000 0001 0000 0000 0000\n")),
    synth("rt_cache", _HEADER, fixed(
        "Iface\tDestination\tGateway \tFlags\t\tRefCnt\tUse\tMetric\tSource\t\tMTU\tWindow\tIRTT\tTOS\tHHRef"
        "\tHHUptod\tSpecDst".ljust(127) + "\n")),
    synth("snmp", _COUNTERS, fixed(_zeros(_SNMP))),
    synth("snmp6", _COUNTERS, snmp6),
    synth("sockstat", _COUNTERS, fixed(
        "sockets: used 0\nTCP: inuse 0 orphan 0 tw 0 alloc 0 mem 0\nUDP: inuse 0 mem 0\nUDPLITE: inuse 0\n"
        "RAW: inuse 0\nFRAG: inuse 0 memory 0\n")),
    synth("sockstat6", _COUNTERS, fixed(
        "TCP6: inuse 0\nUDP6: inuse 0\nUDPLITE6: inuse 0\nRAW6: inuse 0\nFRAG6: inuse 0 memory 0\n")),
    synth("softnet_stat", _COUNTERS, cpuinfo.softnet_stat),
    synth("stat/rt_cache", _COUNTERS, fixed(
        "entries  in_hit   in_slow_tot in_slow_mc in_no_route in_brd   in_martian_dst in_martian_src "
        "out_hit  "
        "out_slow_tot out_slow_mc gc_total gc_ignored gc_goal_miss gc_dst_overflow in_hlist_search "
        "out_hlist_search\n")),
    synth("tcp", _SOCKETS, _inet("  " + _FOUR_HEAD, 149, _TCP)),
    synth("tcp6", _SOCKETS, _inet(_SIX_HEAD, 0, _TCP)),
    synth("udp", _SOCKETS, _inet("   " + _FOUR_HEAD + _DATAGRAM_TAIL, 127, _UDP)),
    synth("udp6", _SOCKETS, _inet(_SIX_HEAD + _DATAGRAM_TAIL, 0, _UDP)),
    synth("udplite", _SOCKETS, _inet("   " + _FOUR_HEAD + _DATAGRAM_TAIL, 127, _UDP)),
    synth("udplite6", _SOCKETS, _inet(_SIX_HEAD + _DATAGRAM_TAIL, 0, _UDP)),
    synth("unix", _SOCKETS, unix),
    refused("arp_tables_matches", "modules of the host"),
    refused("arp_tables_names", "modules of the host"),
    refused("arp_tables_targets", "modules of the host"),
    refused("bonding/*", "no such device"),
    refused("connector", "kernel connector: not for guests"),
    refused("dev_snmp6/*", "devices of the host"),
    refused("fib_triestat", "sizes of kernel structures"),
    refused("ip6_mr_cache", "not for guests"),
    refused("ip6_mr_vif", "not for guests"),
    refused("ip6_tables_matches", "modules of the host"),
    refused("ip6_tables_names", "modules of the host"),
    refused("ip6_tables_targets", "modules of the host"),
    refused("ip6t_hashlimit/*", "firewall of the host"),
    refused("ipconfig/*", "boot-time configuration of the host"),
    refused("ipt_hashlimit/*", "firewall of the host"),
    refused("netfilter/*", "firewall of the host"),
    refused("nf_conntrack", "firewall of the host"),
    refused("nf_conntrack_expect", "firewall of the host"),
    refused("pnp", "boot-time configuration of the host"),
    refused("pktgen/*", "no packet generator"),
    refused("rpc/*", "no RPC"),
    refused("rt_acct", "routing counters of the host"),
    refused("sctp/*", "no SCTP"),
    refused("stat/*", "firewall of the host"),
    refused("tls_stat", "counters"),
    refused("vlan/*", "no VLAN"),
    refused("wireless", "no such device"),
    refused("xfrm_stat", "counters"),
    refused("xt_recent/*", "firewall of the host"),
)  # fmt: skip
