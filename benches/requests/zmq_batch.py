"""Ventilator, worker and sink, as the guide of ZeroMQ has them ("Divide and Conquer").

zmq_batch.py ventilator ADDRESS     sends each line of standard input, the milliseconds of a task
zmq_batch.py worker NAME VENTILATOR SINK
zmq_batch.py sink ADDRESS           prints the name of the worker of each task that is done
"""

import sys
import time

import zmq

role, *arguments = sys.argv[1:]
context = zmq.Context()
if role == "ventilator":
    tasks = context.socket(zmq.PUSH)
    tasks.bind(arguments[0])
    print("ready", flush=True)
    # All at once, as the guide does.
    for line in sys.stdin.read().split():
        tasks.send_string(line)
    # It lives until its tasks are taken.
    context.destroy(linger=-1)
elif role == "worker":
    name, ventilator, sink = arguments
    tasks, done = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    tasks.connect(ventilator)
    done.connect(sink)
    while True:
        time.sleep(int(tasks.recv_string()) / 1000)
        done.send_string(name)
else:
    done = context.socket(zmq.PULL)
    done.bind(arguments[0])
    print("ready", flush=True)
    while True:
        print(done.recv_string(), flush=True)
