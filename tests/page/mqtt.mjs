// What a test publishes itself: a client of MQTT 5 that sends at QoS 0 (MQTT 5.0, sections 3.1 and 3.3).

import { once } from 'node:events';
import net from 'node:net';

/** A text with its length. */
const text = (value) => {
  const bytes = Buffer.from(value);
  return Buffer.concat([Buffer.from([bytes.length >> 8, bytes.length & 255]), bytes]);
};

/** A packet: its first byte, its length, its content. */
const packet = (first, ...parts) => {
  const body = Buffer.concat(parts);
  const length = [];
  for (let rest = body.length; ;) {
    const more = rest > 127;
    length.push((rest & 127) | (more ? 128 : 0));
    if (!more) break;
    rest >>= 7;
  }
  return Buffer.concat([Buffer.from([first, ...length]), body]);
};

export class Publisher {
  /** Connects to the broker at a port of this host. */
  static async connect(port) {
    const publisher = new Publisher();
    publisher.socket = net.connect(port, '127.0.0.1');
    await once(publisher.socket, 'connect');
    const flags = Buffer.from([5, 2, 0, 0, 0]); // version, clean start, no keep-alive, no properties
    publisher.socket.write(packet(0x10, text('MQTT'), flags, text('page-test')));
    const [answer] = await once(publisher.socket, 'data');
    if (answer[0] !== 0x20 || answer[3] !== 0) throw new Error(`the broker answers ${answer.toString('hex')}`);
    return publisher;
  }

  /** Publishes a JSON object. */
  publish(topic, value, retain = false) {
    this.socket.write(packet(retain ? 0x31 : 0x30, text(topic), Buffer.from([0]), Buffer.from(JSON.stringify(value))));
  }

  /** Ends the connection after what was published. */
  async close() {
    this.socket.end(Buffer.from([0xe0, 0]));
    await once(this.socket, 'close');
  }
}
