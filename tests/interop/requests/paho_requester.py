"""Asks a question as users of paho write it, and prints the answer as a JSON object: `reply`, `data` (its
Correlation Data), and `properties` (its user properties).

paho_requester.py TOPIC RESPONSE_TOPIC CORRELATION_DATA PAYLOAD

The broker is at 127.0.0.1, at the port that TAEL_PORT says.
"""

import json
import os
import sys

from paho.mqtt import client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

topic, response, data, payload = sys.argv[1:]


def connected(client, userdata, flags, reason, properties):
    client.subscribe(response, qos=1)


def subscribed(client, userdata, mid, reasons, properties):
    properties = Properties(PacketTypes.PUBLISH)
    properties.ResponseTopic = response
    properties.CorrelationData = data.encode()
    client.publish(topic, payload, qos=1, properties=properties)


def answered(client, userdata, message):
    properties = message.properties
    answer = {
        "reply": message.payload.decode(),
        "data": properties.CorrelationData.decode(),
        "properties": dict(properties.UserProperty),
    }
    print(json.dumps(answer), flush=True)
    client.disconnect()


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
client.on_connect, client.on_subscribe, client.on_message = connected, subscribed, answered
client.connect("127.0.0.1", int(os.environ["TAEL_PORT"]))
client.loop_forever()
