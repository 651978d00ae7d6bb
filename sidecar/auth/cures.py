"""What an operator can do about a refusal: by who was refused and how, not by the word alone. Pure."""

RAW = "; id or secret hold characters that form-encoding changes, so try client_auth client_secret_basic_raw"

_CLIENT = {
    "client_secret_basic": "check client_id and client_secret, or set client_auth: client_secret_post",
    "client_secret_basic_raw": "check client_id and client_secret, or set client_auth: client_secret_basic",
    "client_secret_post": "check client_id and client_secret, or set client_auth: client_secret_basic",
    "private_key_jwt": "check client_id, private_key, key_id and assertion against what the issuer has of this client",
    "assertion": "check client_id and client_assertion: its issuer, subject, audience and end",
    "tls_client_auth": "check client_id and tls.client_cert against what the issuer has of this client",
    "none": "check client_id; the issuer may want a client_auth with a secret",
}
_GRANT = {
    "password": "check username and password, and that the account is not locked",
    "refresh_token": "the refresh token is over, revoked or used by another: log in anew for a fresh refresh_token",
    "jwt_bearer": "check subject, private_key and assertion.audience, or what is in assertion_file",
    "token_exchange": "check subject_token and subject_token_type: it may be over, or not meant for this issuer",
}
_CURES = {
    "allowed": "have the issuer allow this grant and what it is for to the client",
    "offered": "set a grant that the issuer offers",
    "scope": "set a scope that the issuer grants to this client",
    "target": "check resource and extra (audience, say): they name what the token is for",
    "person": "the issuer wants a person: consent, another factor or a new password, given in a browser",
    "account": "have the account activated at the issuer, and allowed to log in from here",
    "request": "check grant, scope, extra and client_auth against the issuer's documentation",
    "front": "something in front of the issuer refused the request: check token_url, and who may ask from where",
    "expired": "the client's secret has expired: make a new one at the issuer and set client_secret",
    "tenant": "check the tenant in token_url, and client_id",
    "clock": "check this machine's clock and the audience of the assertion",
}
SUBJECTS = {
    "invalid_client": "client",
    "invalid_client_id": "client",
    "invalid_client_credentials": "client",
    "incorrect_client_credentials": "client",
    "invalid_grant": "grant",
    "bad_refresh_token": "grant",
    "bad_verification_code": "grant",
    "unauthorized": "login",
    "bad_credentials": "login",
    "unauthorized_client": "allowed",
    "access_denied": "allowed",
    "invalid_app_access": "allowed",
    "app_not_found": "client",
    "unsupported_grant_type": "offered",
    "invalid_scope": "scope",
    "scope_invalid": "scope",
    "insufficient_scope": "scope",
    "invalid_target": "target",
    "invalid_resource": "target",
    "interaction_required": "person",
    "consent_required": "person",
    "login_required": "person",
    "mfa_required": "person",
    "password_expired": "person",
    "inactive_user": "account",
    "inactive_org": "account",
    "user_disabled": "account",
    "unknown_user": "account",
    "invalid_request": "request",
}
"""What a code is about: the six of RFC 6749 section 5.2, those of RFC 8707, OpenID Connect, and of vendors."""

_ENTRA = {
    "AADSTS7000222": "expired",
    "AADSTS7000215": "client",
    "AADSTS700016": "tenant",
    "AADSTS90002": "tenant",
    "AADSTS700024": "clock",
    "AADSTS50126": "grant",
    "AADSTS50034": "account",
    "AADSTS50053": "account",
    "AADSTS50057": "account",
    "AADSTS53003": "account",
    "AADSTS50055": "person",
    "AADSTS50076": "person",
    "AADSTS50079": "person",
    "AADSTS65001": "person",
    "AADSTS500011": "target",
}
"""Entra names the cause by a number in its description; the code beside it often says less."""


def cure(*, grant: str, client_auth: str, status: int, error: str, description: str, page: bool, mute: bool) -> str:
    """Return what to check after a refusal of *grant*.

    *page*: what came was no issuer's answer, perhaps of something in front; *mute*: nothing came with the status.
    """
    number = next((subject for number, subject in _ENTRA.items() if f"{number}:" in description), None)
    subject = number or SUBJECTS.get(error)
    if subject is None or (error == "access_denied" and status == 401):  # noqa: PLR2004
        subject = {401: "login", 403: "front" if page else "login" if mute else "allowed"}.get(status, "request")
    client, own = _CLIENT[client_auth], _GRANT.get(grant)
    if subject in _CURES:
        # Some say invalid_request of a refresh token that they no longer know, and of a wrong password.
        return f"{own}; then {_CURES[subject]}" if own and subject == "request" else _CURES[subject]
    if subject == "client" or own is None:
        return client
    return own if subject == "grant" else f"{own}; then {client}"
