"""Works a queue with threads, as users of pika write it: up to N messages at once, each handed to a
command on its standard input, acknowledged if the command exits with 0 and rejected otherwise.

pika_worker.py [--count COUNT] QUEUE N COMMAND...

It ends after COUNT messages. RABBITMQ_USER_URL is the URL of the virtual host.
"""

import argparse
import functools
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pika

options = argparse.ArgumentParser()
options.add_argument("--count", type=int)
options.add_argument("queue")
options.add_argument("jobs", type=int)
options.add_argument("command", nargs=argparse.REMAINDER)
options = options.parse_args()

connection = pika.BlockingConnection(pika.URLParameters(os.environ["RABBITMQ_USER_URL"]))
channel = connection.channel()
channel.basic_qos(prefetch_count=options.jobs)
pool = ThreadPoolExecutor(options.jobs)
settled = 0


def settle(tag, code):
    global settled
    if code == 0:
        channel.basic_ack(tag)
    else:
        channel.basic_reject(tag, requeue=False)
    settled += 1
    if settled == options.count:
        channel.stop_consuming()


def work(tag, body):
    code = subprocess.run(options.command, input=body).returncode
    # Channels of pika belong to one thread.
    connection.add_callback_threadsafe(functools.partial(settle, tag, code))


def on_message(_channel, method, _properties, body):
    pool.submit(work, method.delivery_tag, body)


channel.basic_consume(options.queue, on_message)
channel.start_consuming()
connection.close()
