#!/bin/sh
# An inventory of Ansible from the facts of a root: `ansible-inventory -i inventory.sh --list`. The view
# `ansible` of views.toml is in tael.toml.
exec tael facts view ansible --raw
