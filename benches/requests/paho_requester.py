"""Asks a question for each line of standard input, over one connection, and prints each answer.

paho_requester.py PORT TOPIC RESPONSE_TOPIC
"""

import socket
import sys

from paho.mqtt import client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

port, topic, response = sys.argv[1:]


def connected(client, userdata, flags, reason, properties):
    client.socket().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.subscribe(response, qos=1)


def subscribed(client, userdata, mid, reasons, properties):
    print("ready", flush=True)


def answered(client, userdata, message):
    number = int(message.properties.CorrelationData)
    print(number, message.payload.decode(), flush=True)


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
client.on_connect, client.on_subscribe, client.on_message = connected, subscribed, answered
client.connect("127.0.0.1", int(port))
client.loop_start()
for number, line in enumerate(sys.stdin, 1):
    properties = Properties(PacketTypes.PUBLISH)
    properties.ResponseTopic = response
    properties.CorrelationData = str(number).encode()
    client.publish(topic, line.rstrip("\n"), qos=1, properties=properties)
client.disconnect()
