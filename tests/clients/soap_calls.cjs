// Node with soap, which leaves cookies to its user: soap_calls.cjs URL
const soap = require('soap');

async function main() {
  const client = await soap.createClientAsync(`${process.argv[2]}/soap?wsdl`);
  client.setSecurity(new soap.BasicAuthSecurity('old', 'stale'));
  for (const number of ['7', '8', '0', '9']) {
    try {
      const [part] = await client.GetPartAsync({ number });
      console.log(part.name, String(part.call), part.page);
      client.clearHttpHeaders();
      client.addHttpHeader('Cookie', client.lastResponseHeaders['set-cookie'][0].split(';')[0]);
    } catch (error) {
      if (!error.root) throw error;
      console.log('fault', error.root.Envelope.Body.Fault.faultstring);
    }
  }
}

main();
