// Node with axios: axios.cjs URL
const { createHash } = require('node:crypto');
const axios = require('axios');

const base = process.argv[2];
const headers = process.env.AUTH ? { Authorization: process.env.AUTH } : {};

async function call(method, path, data) {
  const url = base + path;
  const response = await axios.request({ method, url, headers, data, responseType: 'arraybuffer', validateStatus: null });
  console.log(`> ${method} ${path}`);
  console.log(response.status, response.statusText);
  for (const [name, values] of Object.entries(response.headers)) {
    for (const value of [values].flat()) console.log(`${name}: ${value}`);
  }
  console.log(createHash('sha256').update(response.data).digest('hex'));
}

async function main() {
  for (const path of ['/json?x=1&y=%2F', '/gzip', '/missing', '/moved', '/chunked', '/large']) await call('GET', path);
  await call('HEAD', '/json');
  await call('POST', '/items', { name: 'bolt' });
}

main();
