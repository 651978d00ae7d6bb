// An OAuth server that we did not write, on a free port of loopback; prints its URL when it serves.
// Usage: node server.mjs DIRECTORY CLIENTS, the directory where oidc-provider is installed and its clients as JSON.
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [directory, clients] = process.argv.slice(2);
const { Provider } = await import(pathToFileURL(createRequire(`${directory}/`).resolve('oidc-provider')));

const server = createServer().listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients: JSON.parse(clients),
    scopes: ['offline_access', 'read', 'write'],
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: true }, // a log-in page that takes any user
      introspection: { enabled: true },
    },
    findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    pkce: { required: () => false },
    issueRefreshToken: () => true,
    rotateRefreshToken: true, // using a refresh token twice revokes the whole grant
    ttl: { ClientCredentials: 120, AccessToken: 60, RefreshToken: 600, Grant: 600, Session: 600, Interaction: 600 },
    cookies: { keys: ['test'] },
  });
  server.on('request', provider.callback());
  console.log(issuer);
});
