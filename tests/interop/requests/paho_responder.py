"""Answers questions as users of paho write it: the payload in upper case, to the Response Topic and with
the Correlation Data of the question.

paho_responder.py [--pause SECONDS] FILTER

It prints `ready` when it is subscribed, and a line for each answer. The broker is at 127.0.0.1, at the
port that TAEL_PORT says.
"""

import argparse
import os
import time

from paho.mqtt import client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

options = argparse.ArgumentParser()
options.add_argument("--pause", type=float, default=0)
options.add_argument("filter")
options = options.parse_args()


def connected(client, userdata, flags, reason, properties):
    client.subscribe(options.filter, qos=1)


def subscribed(client, userdata, mid, reasons, properties):
    print("ready", flush=True)


def asked(client, userdata, message):
    time.sleep(options.pause)
    properties = Properties(PacketTypes.PUBLISH)
    properties.CorrelationData = message.properties.CorrelationData
    topic = message.properties.ResponseTopic
    client.publish(topic, message.payload.upper(), qos=1, properties=properties)
    print("answered", flush=True)


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
client.on_connect, client.on_subscribe, client.on_message = connected, subscribed, asked
client.connect("127.0.0.1", int(os.environ["TAEL_PORT"]))
client.loop_forever()
