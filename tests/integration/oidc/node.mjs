// An OAuth server that we did not write, on a free port of loopback; prints its URL when it serves.
// Usage: node node.mjs DIRECTORY CLIENT, the directory where @node-oauth/oauth2-server is installed and its client as JSON.
import { createServer } from 'node:http';
import { createRequire } from 'node:module';

const [directory, text] = process.argv.slice(2);
const OAuth = createRequire(`${directory}/`)('@node-oauth/oauth2-server');
const { client, user } = JSON.parse(text);
const tokens = new Map(); // by refresh token

const oauth = new OAuth({
  accessTokenLifetime: 90,
  model: {
    getClient: (id, secret) => (id === client.id && (secret === null || secret === client.secret) ? client : null),
    getUser: (name, password) => (name === user.name && password === user.password ? user : null),
    getUserFromClient: () => user,
    validateScope: (_user, _client, scope) => ((scope ?? []).every((each) => ['read', 'write'].includes(each)) ? scope : false),
    getRefreshToken: (token) => tokens.get(token),
    revokeToken: (token) => tokens.delete(token.refreshToken),
    saveToken: (token, ofClient, ofUser) => {
      const saved = { ...token, client: ofClient, user: ofUser };
      if (token.refreshToken) tokens.set(token.refreshToken, saved);
      return saved;
    },
  },
});

const server = createServer(async (message, answer) => {
  let body = '';
  for await (const chunk of message) body += chunk;
  const { method, headers } = message;
  const request = new OAuth.Request({ method, headers, query: {}, body: Object.fromEntries(new URLSearchParams(body)) });
  const response = new OAuth.Response({});
  await oauth.token(request, response).catch((error) => (response.status = error.code));
  answer.writeHead(response.status, { ...response.headers, 'Content-Type': 'application/json' });
  answer.end(JSON.stringify(response.body));
}).listen(0, '127.0.0.1', () => console.log(`http://127.0.0.1:${server.address().port}`));
