"""What an operator can do about a refusal: by who was refused and how, not by the word alone. Pure."""

import re

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
_CODES = {
    "client": "invalid_client invalid_client_id invalid_client_credentials incorrect_client_credentials app_not_found"
    " AADSTS7000215",
    "grant": "invalid_grant bad_refresh_token bad_verification_code AADSTS50126",
    "login": "unauthorized bad_credentials",
    "allowed": "unauthorized_client access_denied invalid_app_access",
    "offered": "unsupported_grant_type",
    "scope": "invalid_scope scope_invalid insufficient_scope",
    "target": "invalid_target invalid_resource AADSTS500011",
    "person": "interaction_required consent_required login_required mfa_required password_expired"
    " AADSTS50055 AADSTS50076 AADSTS50079 AADSTS65001",
    "account": "inactive_user inactive_org user_disabled unknown_user AADSTS50034 AADSTS50053 AADSTS50057 AADSTS53003",
    "request": "invalid_request",
    "expired": "AADSTS7000222",
    "tenant": "AADSTS700016 AADSTS90002",
    "clock": "AADSTS700024",
}
SUBJECTS = {code: subject for subject, codes in _CODES.items() for code in codes.split()}
"""What a code is about: the six of RFC 6749 section 5.2, those of RFC 8707 and OpenID Connect, and of vendors."""

_ENTRA = re.compile(r"AADSTS\d+(?=:)")  # in the description, and says more than the code


def cure(*, grant: str, client_auth: str, status: int, error: str, description: str, page: bool, mute: bool) -> str:
    """Return what to check after a refusal of *grant*.

    *page*: what came was no issuer's answer, perhaps of something in front; *mute*: nothing came with the status.
    """
    number = _ENTRA.search(description)
    subject = (number and SUBJECTS.get(number[0])) or SUBJECTS.get(error)
    if subject is None or (error == "access_denied" and status == 401):  # noqa: PLR2004
        subject = {401: "login", 403: "front" if page else "login" if mute else "allowed"}.get(status, "request")
    client, own = _CLIENT[client_auth], _GRANT.get(grant)
    if subject in _CURES:
        # Some say invalid_request of a refresh token that they no longer know, and of a wrong password.
        return f"{own}; then {_CURES[subject]}" if own and subject == "request" else _CURES[subject]
    if subject == "client" or own is None:
        return client
    return own if subject == "grant" else f"{own}; then {client}"
