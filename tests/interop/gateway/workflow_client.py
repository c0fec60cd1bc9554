#!/usr/bin/env python3
"""A workflow client as the OODT consumers and producers are: XML-RPC of Python's own library.

workflow_client.py URL calls               every kind of call; prints a JSON object of the answers
workflow_client.py URL event               one event
workflow_client.py URL drive EVENT MAX     hands over the JSON lines of stdin, at most MAX at a time
"""
import datetime
import json
import sys
import time
import xmlrpc.client


def fault(call, *arguments):
    """Returns the code and the text of the fault that a call gets."""
    try:
        call(*arguments)
    except xmlrpc.client.Fault as e:
        return [e.faultCode, e.faultString]
    return None


def calls(url):
    server = xmlrpc.client.ServerProxy(url, allow_none=True)
    manager = server.workflowmgr
    metadata = {
        "Dataset": ["abc"],
        "Run": 7,
        "Share": 0.5,
        "Good": True,
        "Empty": {},
        "None": None,
        "Name": "Zoë <&> \u732b",
        "When": datetime.datetime(2026, 11, 27, 6, 0, 0),
        "Bytes": xmlrpc.client.Binary(b"\0\xff"),
    }
    return {
        "event": manager.handleEvent("seq/status", metadata),
        "other": fault(manager.handleEvent, "infrastructure/pipelines/p/control", {}),
        "wildcard": fault(manager.handleEvent, "#", {}),
        "arity": fault(manager.handleEvent, "seq/status"),
        "kind": fault(manager.handleEvent, 1, {}),
        "metadata": fault(manager.handleEvent, "seq/status", ["a"]),
        "unknown": fault(manager.getWorkflowById, "1"),
        "listing": fault(server.system.listMethods),
        "running": manager.getNumWorkflowInstancesByStatus("PGE EXEC"),
        "finished": manager.getNumWorkflowInstancesByStatus("FINISHED"),
        "instances": len(manager.getWorkflowInstances()),
    }


def drive(url, event, most):
    """Does as the consumer does: hands over one message when fewer than `most` are executed."""
    manager = xmlrpc.client.ServerProxy(url).workflowmgr
    highest = 0
    for handed, line in enumerate(sys.stdin, 1):
        while True:
            count = manager.getNumWorkflowInstancesByStatus("PGE EXEC")
            for instance in manager.getWorkflowInstances():
                assert instance["id"] and instance["status"] in ("QUEUED", "PGE EXEC")
            if count < most:
                break
            time.sleep(0.02)
        assert manager.handleEvent(event, json.loads(line)) is True
        # The consumer sleeps now, while its message is on its way.
        while True:
            finished = manager.getNumWorkflowInstancesByStatus("FINISHED")
            count = manager.getNumWorkflowInstancesByStatus("PGE EXEC")
            highest = max(highest, count)
            if finished + count >= handed:
                break
            time.sleep(0.01)
    return {"highest": highest}


def main():
    url, verb = sys.argv[1:3]
    if verb == "calls":
        answer = calls(url)
    elif verb == "event":
        manager = xmlrpc.client.ServerProxy(url).workflowmgr
        answer = {"event": manager.handleEvent("seq/status", {})}
    else:
        answer = drive(url, sys.argv[3], int(sys.argv[4]))
    print(json.dumps(answer))


main()
