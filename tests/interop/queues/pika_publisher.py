"""Publishes each line of standard input to a queue: persistent, mandatory, confirmed one by one.

pika_publisher.py QUEUE

RABBITMQ_USER_URL is the URL of the virtual host. The message with line N has the id `pika-N`.
"""

import os
import sys

import pika

queue = sys.argv[1]
connection = pika.BlockingConnection(pika.URLParameters(os.environ["RABBITMQ_USER_URL"]))
channel = connection.channel()
channel.confirm_delivery()
for number, line in enumerate(sys.stdin.buffer, 1):
    channel.basic_publish(
        exchange="",
        routing_key=queue,
        body=line.rstrip(b"\n"),
        properties=pika.BasicProperties(delivery_mode=2, message_id=f"pika-{number}"),
        mandatory=True,
    )
connection.close()
