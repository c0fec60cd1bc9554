"""One end of a ZeroMQ PAIR that carries bytes, in messages of 16 KiB.

zmq_pair.py send ADDRESS     sends standard input, and then an empty message
zmq_pair.py receive ADDRESS  writes what comes to standard output, up to the empty message
"""

import sys

import zmq

role, address = sys.argv[1:]
context = zmq.Context()
pair = context.socket(zmq.PAIR)
if role == "send":
    pair.connect(address)
    while part := sys.stdin.buffer.read(16 * 1024):
        pair.send(part)
    pair.send(b"")
    # It lives until all is taken.
    context.destroy(linger=-1)
else:
    pair.bind(address)
    while part := pair.recv():
        sys.stdout.buffer.write(part)
    sys.stdout.buffer.flush()
