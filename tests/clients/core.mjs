// Node's core http and https: core.mjs URL
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import http from 'node:http';
import https from 'node:https';

const base = process.argv[2];
const { request } = base.startsWith('https:') ? https : http;
const headers = process.env.AUTH ? { Authorization: process.env.AUTH } : {};

async function call(method, path, body) {
  const type = body ? { 'Content-Type': 'application/json', 'Content-Length': body.length } : {};
  const asked = request(base + path, { method, headers: { ...headers, ...type } }).end(body);
  const [response] = await once(asked, 'response');
  const hash = createHash('sha256');
  for await (const part of response) hash.update(part);
  console.log(`> ${method} ${path}`);
  console.log(response.statusCode, response.statusMessage);
  for (let i = 0; i < response.rawHeaders.length; i += 2) {
    console.log(`${response.rawHeaders[i]}: ${response.rawHeaders[i + 1]}`);
  }
  console.log(hash.digest('hex'));
}

for (const path of ['/json?x=1&y=%2F', '/gzip', '/missing', '/moved', '/chunked', '/large']) await call('GET', path);
await call('HEAD', '/json');
await call('POST', '/items', '{"name": "bolt"}');
