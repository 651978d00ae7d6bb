// Node's own fetch: fetch.mjs URL
import { createHash } from 'node:crypto';

const base = process.argv[2];
const headers = process.env.AUTH ? { Authorization: process.env.AUTH } : {};

async function call(method, path, body) {
  const type = body ? { 'Content-Type': 'application/json' } : {};
  const response = await fetch(base + path, { method, body, headers: { ...headers, ...type } });
  console.log(`> ${method} ${path}`);
  console.log(response.status, response.statusText);
  for (const [name, value] of response.headers) console.log(`${name}: ${value}`);
  console.log(createHash('sha256').update(Buffer.from(await response.arrayBuffer())).digest('hex'));
}

for (const path of ['/json?x=1&y=%2F', '/gzip', '/missing', '/moved', '/chunked', '/large']) await call('GET', path);
await call('HEAD', '/json');
await call('POST', '/items', '{"name": "bolt"}');
