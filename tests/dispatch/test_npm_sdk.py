"""The published npm SDK against our dispatcher: it publishes, reads, cancels, and its receiver trusts what we send.

It is installed once into a folder of the machine's temporary files. Without node, or where the registry refuses,
these tests are skipped and say so.
"""

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.deployment import CURRENT_KEY, NEXT_KEY, TOKEN, clean_env
from tests.dispatch.conftest import Home
from tests.receiver import Receiver, Reply

VERSION = "2.12.0"
INSTALL_SECONDS_MAX = 120
RUN_SECONDS_MAX = 30

SENDING = """
const { Client } = require("@upstash/qstash");
const { url, token, to, callback, verify } = JSON.parse(process.env.ARGUMENTS);
const client = new Client({ baseUrl: url, token, retry: false });
(async () => {
  const sent = await client.publishJSON({
    url: to, body: { hello: "wörld" }, callback, failureCallback: callback, retries: 0,
    headers: { "X-Custom": "v" }, deduplicationId: "npm-1", timeout: 30, label: "npm",
  });
  const again = await client.publishJSON({ url: to, body: { hello: "wörld" }, deduplicationId: "npm-1" });
  const later = [];
  for (let n = 0; n < 4; n++) later.push((await client.publishJSON({ url: to, body: n, delay: "1h" })).messageId);
  const message = await client.messages.get(later[0]);
  const one = await client.messages.cancel(later[0]);
  await client.messages.delete(later[1]);
  const two = await client.messages.cancel(later);
  let refused = null;
  try { await client.messages.get("msg_none"); } catch (error) { refused = [error.status, error.message]; }
  let unknown = null;
  try { await new Client({ baseUrl: url, token: "wrong", retry: false }).messages.get("msg_none"); }
  catch (error) { unknown = error.status; }
  console.log(JSON.stringify({ sent, again, message, one, two, refused, unknown }));
})();
"""

VERIFYING = """
const { Receiver } = require("@upstash/qstash");
const { current, next, deliveries } = JSON.parse(process.env.ARGUMENTS);
const receiver = new Receiver({ currentSigningKey: current, nextSigningKey: next });
const check = (request) => receiver.verify(request).catch((error) => error.message);
(async () => {
  const verdicts = [];
  for (const { signature, body, url } of deliveries) {
    verdicts.push(await check({ signature, body, url }));
    verdicts.push(await check({ signature, body: body + " ", url }));
    verdicts.push(await check({ signature, body, url: url + "x" }));
  }
  console.log(JSON.stringify(verdicts));
})();
"""


@pytest.fixture(scope="module")
def package() -> Path:
    """A folder with the SDK in it."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("NODE IS ABSENT: the npm SDK is not tested")
    folder = Path(tempfile.gettempdir()) / f"taskbeam-npm-{os.getuid()}-{VERSION}"
    if not (folder / "node_modules/@upstash/qstash/package.json").exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        argv = [npm, "install", "--no-save", "--no-audit", "--no-fund", f"@upstash/qstash@{VERSION}"]
        done = subprocess.run(
            argv, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"THE NPM REGISTRY REFUSES: the npm SDK is not tested ({done.stderr[-300:]})")
    return folder


async def node(package: Path, script: str, **arguments: Any) -> Any:
    """What the script prints, as JSON."""
    process = await asyncio.create_subprocess_exec(
        "node",
        "-e",
        script,
        cwd=package,
        env={**clean_env(), "ARGUMENTS": json.dumps(arguments)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), RUN_SECONDS_MAX)
    assert process.returncode == 0, err.decode()
    return json.loads(out)


async def test_the_npm_sdk(home: Home, receiver: Receiver, package: Path) -> None:
    to = receiver.on("/npm", Reply(200, b'{"done":true}'))
    callback = receiver.on("/npm-callback", Reply())
    said = await node(package, SENDING, url=home.deployment.dispatcher.url, token=TOKEN, to=to, callback=callback)
    assert said["again"] == {"messageId": said["sent"]["messageId"], "url": to, "deduplicated": True}
    message = said["message"]
    assert (message["url"], message["body"], message["method"], message["maxRetries"]) == (to, "0", "POST", 3)
    assert message["notBefore"] - message["createdAt"] == 3_600_000
    assert said["one"] == {"cancelled": 1}
    assert said["two"] == {"cancelled": 2}
    assert said["refused"][0] == 404
    assert said["unknown"] == 401

    (delivery,) = await receiver.wait("/npm")
    (news,) = await receiver.wait("/npm-callback")
    assert (delivery.json(), delivery.headers["x-custom"]) == ({"hello": "wörld"}, "v")
    assert not [name for name in delivery.headers if "telemetry" in name]
    assert (news.json()["status"], news.json()["sourceMessageId"]) == (200, said["sent"]["messageId"])

    deliveries = [
        {"signature": r.headers["upstash-signature"], "body": r.body.decode(), "url": url}
        for r, url in ((delivery, to), (news, callback))
    ]
    verdicts = await node(package, VERIFYING, current=CURRENT_KEY, next=NEXT_KEY, deliveries=deliveries)
    assert [verdict is True for verdict in verdicts] == [True, False, False] * 2
    assert "body hash" in verdicts[1]
    assert "subject" in verdicts[2]
    # After a rotation, what was the next key is the current one.
    rotated = await node(package, VERIFYING, current="sig_other", next=CURRENT_KEY, deliveries=deliveries[:1])
    assert rotated[0] is True
