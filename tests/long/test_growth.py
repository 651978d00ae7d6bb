"""A thousand upstreams, in full size; the bench says what they cost."""

from pathlib import Path

import pytest
import trustme

from tests.integration import test_growth


@pytest.mark.timeout(600)
async def test_a_thousand_upstreams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds for a hundred does: one context, eight first tokens at a time, all there after a restart."""
    monkeypatch.setattr(test_growth, "COUNT", 1000)
    monkeypatch.setattr(test_growth, "PATIENCE", 300.0)
    authority, ca = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    for number, test in enumerate(
        (
            test_growth.test_equal_settings_share_one_tls_context,
            test_growth.test_first_tokens_are_got_a_few_at_a_time,
            test_growth.test_records_of_many_are_there_when_the_ports_open,
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        await test(authority, ca, folder)
