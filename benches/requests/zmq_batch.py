"""Ventilator, worker and sink, as the guide of ZeroMQ has them ("Divide and Conquer").

zmq_batch.py ventilator ADDRESS     sends each line of standard input, the milliseconds of a task
zmq_batch.py worker NAME VENTILATOR SINK
                                    waits for as long as each task takes
zmq_batch.py starter NAME VENTILATOR SINK PROGRAM
                                    starts "PROGRAM wait" for each task, which waits
zmq_batch.py sink ADDRESS           prints the name of the worker of each task that is done
"""

import os
import subprocess
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
elif role in ("worker", "starter"):
    name, ventilator, sink, *program = arguments
    tasks, done = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    tasks.connect(ventilator)
    done.connect(sink)
    while True:
        seconds = int(tasks.recv_string()) / 1000
        if role == "worker":
            time.sleep(seconds)
        else:
            environment = {**os.environ, "ATTR_S": str(seconds)}
            subprocess.run([*program, "wait"], env=environment, check=True)
        done.send_string(name)
else:
    done = context.socket(zmq.PULL)
    done.bind(arguments[0])
    print("ready", flush=True)
    while True:
        print(done.recv_string(), flush=True)
