"""The agent of `estoppel demo --scenario runaway`: it writes letters, and mails them.

Each letter is a task: ask the model for a draft, mail it, and when that fails, try again. Nothing bounds
how often, the pause never grows, and the `except` takes everything for a failure of the mail, so that the
agent goes on even when it is told to stop. Each of these is found in real agents.

What it has of Estoppel is the package: the guard, a session for each task, a step around each call.
"""

import json
import os
import sys
import time
import urllib.request

import estoppel

READERS = ["ada@example.com", "grace@example.com", "full@example.com"]
PAUSE_S = 0.02
# Whoever runs this should not have to look for it an hour later.
PATIENCE_S = 300.0


def ask(service, body):
    """Posts JSON to a service, through the proxy of the environment where there is one."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(os.environ[service], json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def draft(session, reader):
    with session.step(action="model_call") as step:
        answer = ask("AGENT_MODEL_URL", {"prompt": f"Write the newsletter for {reader}."})
        step.usage(
            model=answer["model"],
            input_tokens=answer["input_tokens"],
            output_tokens=answer["output_tokens"],
            cost=answer["cost_usd"],
        )
        return answer["text"]


def mail(session, reader, text):
    letter = {"to": reader, "text": text}
    with session.step("send_mail", letter) as step:
        step.result(ask("AGENT_MAIL_URL", letter))


def say(text):
    print(f"  agent | {text}", file=sys.stderr, flush=True)


def write_to(session, reader, until):
    attempts, problem = 0, None
    while time.monotonic() < until:
        attempts += 1
        try:
            mail(session, reader, draft(session, reader))
            say(f"{session.task}: sent to {reader}")
            return
        except:  # whatever it was, the next attempt may do
            last, problem = problem, f"{sys.exc_info()[1]!r}"
            if problem != last:
                say(f"{session.task}: attempt {attempts}: {problem}; trying again")
        time.sleep(PAUSE_S)


def main():
    guard = estoppel.Guard(agent="newsletter-bot")
    if not guard.wait_ready(timeout=30):
        sys.exit("the server did not answer within 30 s")
    until = time.monotonic() + PATIENCE_S
    for number, reader in enumerate(READERS, 1):
        with guard.session("newsletter", task=f"letter-{number}") as session:
            write_to(session, reader, until)


main()
