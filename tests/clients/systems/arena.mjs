// A sync with Arena as people write it: fetch, no retries. BASE_URL RUN, the password in PASSWORD.
import { createHash } from "node:crypto";

const [base, run] = process.argv.slice(2);
const failures = [];
let calls = 0;
let session;

async function call(method, path, expected = 200, body = undefined) {
  calls += 1;
  const headers = session ? { arena_session_id: session } : {};
  if (body !== undefined && !(body instanceof FormData)) {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(body);
  }
  const answer = await fetch(base + path, { method, headers, body });
  const content = Buffer.from(await answer.arrayBuffer());
  if (answer.status !== expected) failures.push(`${method} ${path}: ${answer.status}`);
  return { answer, content, json: () => JSON.parse(content.toString()) };
}

const given = { email: "script@plant.example", password: process.env.PASSWORD, workspaceId: 7 };
const told = await call("POST", "/login", 200, given);
if (told.answer.ok) {
  session = told.json().arenaSessionId;
  for (const offset of [0, 20, 40, 60]) await call("GET", `/items?offset=${offset}&limit=20`);
  for (let number = 0; number < 12; number++) await call("POST", "/items", 201, { number: `${run}-${number}` });
  const content = Buffer.concat(Array(4096).fill(createHash("sha256").update(run).digest()));
  const form = new FormData();
  form.set("content", new Blob([content]), "drawing.bin");
  const guid = (await call("POST", "/files", 201, form)).answer.headers.get("x-arena-fileguid");
  if (!(await call("GET", `/files/${guid}/content`)).content.equals(content)) failures.push("the file came back as another one");
  const refused = (await call("PUT", "/items/X/lifecycle", 400, {})).json();
  if (refused.errors[0].code !== 4001) failures.push("the business error is another one");
  await call("PUT", "/logout");
}
console.log(JSON.stringify({ calls, failures, session }));
process.exitCode = failures.length ? 1 : 0;
