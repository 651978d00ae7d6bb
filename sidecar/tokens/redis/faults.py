"""What went wrong with Redis, in a sentence for the operator. The server's own words are not repeated."""

import re
from dataclasses import dataclass

SILENT = "gave no answer within store.timeout"


@dataclass(frozen=True, slots=True)
class Fault:
    """*answered*: the server is there and well enough to say no. *elsewhere*: another one is to be asked next."""

    what: str
    answered: bool = False
    elsewhere: bool = False


# The first that fits is it: causes stand before what they lead to.
_FAULTS = (
    (
        r"WRONGPASS|[Ii]nvalid (username|password)|called without any password|NOAUTH|Authentication required",
        "refused the user or password, or wants one; see store.url, store.username and store.password",
    ),
    (r"certificate verify failed: ([\w ',.:*-]{1,120})", "its certificate is not trusted ({}); see store.ca"),
    (r"\bSSL\b|ssl\.|_ssl\.c|TLS", "TLS failed; does it speak TLS at this port?"),
    (r"LOADING", "is loading its data"),
    (r"max number of clients", "has no connection left; raise its maxclients"),
    (r"CLUSTERDOWN|not covered", "the cluster is down, or not all of its slots are served"),
    (r"Cluster mode is not enabled|cluster support disabled", "is no cluster; use redis:// without +cluster"),
    (r"MASTERDOWN", "is a replica without its master"),
    (r"DB index is out of range|Invalid Database", "has no such database; check the number in store.url"),
    (r"Name or service|nodename|Temporary failure in name|getaddrinfo|No address", "its name cannot be resolved"),
    (r"Connect call failed|[Cc]onnection refused|Errno 111|Multiple exceptions", "refused the connection; is it up?"),
    (r"[Tt]imeout|Timed out|timed out", SILENT),
    (r"No master found", "no Sentinel knows a master of this service"),
    (r"previous master is now a slave", "is no longer the master; the new one is looked for"),
    (r"[Cc]losed|reset by peer|Broken pipe|IncompleteRead", "broke off the connection"),
    (r"Too many connections", "too many calls at once"),
)
_REPLIES = (
    (r"WRONGTYPE", "{key} is of another type and is left as it is; remove it"),
    (r"NOPERM|user executing the script can't|has no permissions", "does not permit this to the user; see its ACL"),
    (r"OOM", "has no memory left; raise its maxmemory, with the policy noeviction"),
    (r"MISCONF", "cannot save to its disk and refuses writes; see its log"),
    (r"NOREPLICAS", "has too few replicas and refuses writes"),
    (r"MOVED|ASK|TRYAGAIN|CROSSSLOT", "is part of a cluster; use redis+cluster://"),
)


def fault_of(text: str, *, reply: bool) -> Fault:
    """Return what *text*, of an exception and its causes, means. *reply*: it is an error that the server sent."""
    if re.search(r"\bREADONLY\b", text):
        return Fault("is a read-only replica; the master is wanted", answered=True, elsewhere=True)
    for pattern, what in _REPLIES if reply else ():
        if re.search(rf"\b({pattern})\b", text):
            return Fault(what, answered=True)
    for pattern, what in _FAULTS:
        if match := re.search(pattern, text):
            return Fault(what.format(*match.groups()) if match.groups() else what)
    if reply:
        return Fault("refused the command; is it Redis 6 or newer?", answered=True)
    return Fault("answered what Redis would not")
