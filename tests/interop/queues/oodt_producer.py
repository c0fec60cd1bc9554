"""Sends workflow events as OODT's producer does: to a direct exchange, with the metadata as the JSON
body and once more as headers, without an id and not mandatory, confirmed one by one.

oodt_producer.py [--pace SECONDS] [--java] EVENT COUNT [KEY=VALUE...]

The queue, the routing key and the event have one name. RABBITMQ_USER_URL is the URL of the virtual
host. With --java each value is a list of strings, as OODT's Java callers send them.
"""

import argparse
import json
import os
import time
import uuid

import pika

EXCHANGE = "oodt-exchange"

options = argparse.ArgumentParser()
options.add_argument("--pace", type=float, default=0.1)
options.add_argument("--java", action="store_true")
options.add_argument("event")
options.add_argument("count", type=int)
options.add_argument("metadata", nargs="*")
options = options.parse_args()

metadata = dict(pair.split("=") for pair in options.metadata)
if options.java:
    metadata = {key: value.split(",") for key, value in metadata.items()}

url = os.environ["RABBITMQ_USER_URL"] + "?connection_attempts=3&heartbeat=3600"
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.exchange_declare(exchange=EXCHANGE, exchange_type="direct", durable=True)
channel.queue_declare(queue=options.event, durable=True)
channel.queue_bind(queue=options.event, exchange=EXCHANGE, routing_key=options.event)
channel.confirm_delivery()
properties = pika.BasicProperties(
    app_id=str(uuid.uuid4()),
    content_type="application/json",
    delivery_mode=2,
    headers=metadata,
)
for _ in range(options.count):
    channel.basic_publish(
        exchange=EXCHANGE,
        routing_key=options.event,
        body=json.dumps(metadata, ensure_ascii=False).encode(),
        properties=properties,
    )
    time.sleep(options.pace)
connection.close()
