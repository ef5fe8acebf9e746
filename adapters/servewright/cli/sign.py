"""`servewright sign`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from servewright.cli import printing
from servewright.cli.options import PATH, json_option


@click.command(
    "sign",
    epilog="Example: openssl ecparam -name prime256v1 -genkey -noout -out key.pem; "
    "servewright sign dist/ --key key.pem; "
    "servewright verify-archive dist/ --signature dist.sig --public-key key.pub",
)
@click.argument("target", type=PATH)
@click.option(
    "--key", "private_key", type=PATH, required=True, help="The private key: EC (P-256, P-384, P-521) in PEM."
)
@click.option("--password-env", metavar="NAME", help="The environment variable that holds the key's password.")
@click.option("-o", "--output", type=PATH, help="The signature's file.  [default: TARGET.sig, beside it]")
@json_option
def command(*, target: Path, private_key: Path, password_env: str | None, output: Path | None, as_json: bool) -> None:
    """Sign TARGET, an archive or the folder of an artifact, in the OpenSSF model-signing format.

    With a key of one's own and without any network; `servewright verify-archive` and the `model_signing` program verify
    it. Exit 0: signed. Exit 2: no such file, or no key that can sign. Exit 3: the extra is not installed.
    """
    from servewright import signing

    password = None
    if password_env is not None:
        password = os.environ.get(password_env)
        if not password:
            raise click.UsageError(f"{password_env} is not set; it must hold the password of {private_key}")
    absolute = target.absolute()
    signature = output or absolute.with_name(f"{absolute.name}.sig")
    signed = signing.sign(target, signature, private_key, password=password)
    if as_json:
        printing.as_json({"ok": True, "signature": str(signature), "files": signed.files, "key": signed.key})
        return
    printing.line(f"{signature}: {signed.files} files signed by the key {signed.key}")
