"""Takes workflow events as OODT's consumer does: it polls, hands one message to the workflow manager,
acknowledges it when that has accepted it, and gives it back when that has refused it.

oodt_consumer.py [--pace SECONDS] [--running COMMAND] EVENT MAX COMMAND

COMMAND stands for the workflow manager: it gets the metadata as JSON on its standard input, and refuses
the message by an error. It is called only while fewer than MAX workflows run, as the command of
--running prints [default: none]. As OODT's consumer, it dies of a body that is no JSON.
RABBITMQ_USER_URL is the URL of the virtual host.
"""

import argparse
import json
import os
import subprocess

import pika

options = argparse.ArgumentParser()
options.add_argument("--pace", type=float, default=1.0)
options.add_argument("--running", default="echo 0")
options.add_argument("event")
options.add_argument("max", type=int)
options.add_argument("command")
options = options.parse_args()


def call(command, text=""):
    """Calls the workflow manager, and returns its answer."""
    command = ["sh", "-c", command]
    return subprocess.run(command, input=text.encode(), stdout=subprocess.PIPE, check=True).stdout


connection = pika.BlockingConnection(pika.URLParameters(os.environ["RABBITMQ_USER_URL"]))
channel = connection.channel()
channel.queue_declare(queue=options.event, durable=True)
while True:
    connection.sleep(options.pace)
    if int(call(options.running)) >= options.max:
        continue
    method, _, body = channel.basic_get(queue=options.event)
    if method is None:
        continue
    metadata = json.loads(body)
    try:
        call(options.command, json.dumps(metadata, ensure_ascii=False, sort_keys=True) + "\n")
    except subprocess.CalledProcessError:
        channel.basic_nack(method.delivery_tag)
    else:
        channel.basic_ack(method.delivery_tag)
    connection.sleep(options.pace)
