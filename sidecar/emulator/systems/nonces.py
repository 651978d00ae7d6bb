"""What systems have in common that want HTTP Basic on each call, keep a session for it, and want a nonce on writes."""

from base64 import b64decode

from aiohttp import web

from sidecar.clock import Clock
from sidecar.emulator.systems.system import System, SystemSwitches

READS = frozenset({"GET", "HEAD", "OPTIONS"})


class NonceSystem(System):
    """A session is made for each call that shows the password and no live cookie; `logins` counts them.

    `cookie`: the name of the session's. `nonces`: the nonce of each session, which outlives it: a call that is under
    way when its session ends is still answered.
    """

    logs_out = False
    cookie = "JSESSIONID"

    def __init__(self, switches: SystemSwitches, clock: Clock) -> None:
        super().__init__(switches, clock)
        self.nonces: dict[str, str] = {}
        self._made = 0

    def stale(self) -> None:
        """Give each session another nonce."""
        for session in self.sessions:
            self._new_nonce(session)

    def open(self, user: str) -> str:
        """Return a fresh session of *user*, with a nonce."""
        session = super().open(user)
        self._new_nonce(session)
        return session

    async def enter(self, request: web.BaseRequest) -> str | None:
        """Return the session of *request*, a fresh one if it shows none that lives; None for a wrong password."""
        scheme, _, coded = request.headers.get("Authorization", "").partition(" ")
        try:
            user, _, password = b64decode(coded).decode().partition(":") if scheme == "Basic" else ("", "", "")
        except ValueError:
            user, password = "", ""
        shown = request.cookies.get(self.cookie)
        if (user, password) == (self.user, self.password):
            self.shown.add(password)
            if shown and self.use(shown):
                return shown
        session = self.log_in(user, password) if user else None
        if session:
            self.use(session)
            # Some take longer than others: their answers come in another order than they were made.
            await self.clock.sleep(self.switches.login_delay * (self._count % 4))
        return session

    def is_stale(self, session: str, given: str | None) -> bool:
        """Tell whether *given* is not the nonce of *session*."""
        if given:
            self.shown.add(given)
        stale = given != self.nonces[session]
        self.counters["stale"] += stale
        return stale

    def dressed(self, answer: web.Response, request: web.BaseRequest, session: str) -> web.Response:
        """Add the cookie of *session* to *answer* unless the client showed it."""
        if request.cookies.get(self.cookie) != session:
            answer.headers.add("Set-Cookie", f"{self.cookie}={session}; Path=/; HttpOnly")
        return answer

    def _new_nonce(self, session: str) -> None:
        self._made += 1
        self.nonces[session] = f"canary-xsrf-{self._made:08d}"
