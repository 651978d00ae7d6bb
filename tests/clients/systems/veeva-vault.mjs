// A sync with Veeva Vault as people write it: fetch, XML answers, no retries. BASE_URL RUN, the password in PASSWORD.
const [base, run] = process.argv.slice(2);
const failures = [];
let calls = 0;
let session = "";

async function vault(method, path, form, expected = "SUCCESS") {
  calls += 1;
  const headers = { Accept: "application/xml" };
  if (session) headers.Authorization = `Bearer ${session}`;
  const answer = await fetch(`${base}/api/v24.1/${path}`, { method, headers, body: form && new URLSearchParams(form) });
  const text = await answer.text();
  const found = /<errors><error><type>([^<]*)/.exec(text)?.[1] ?? /<responseStatus>([^<]*)/.exec(text)?.[1];
  if (found !== expected) failures.push(`${method} ${path}: ${answer.status} ${text.slice(0, 200)}`);
  return text;
}

// Logins of scripts ask for JSON, whatever they read else.
const answer = await fetch(`${base}/api/v24.1/auth`, {
  method: "POST",
  body: new URLSearchParams({ username: "script", password: process.env.PASSWORD }),
});
calls += 1;
const text = await answer.text();
try {
  session = JSON.parse(text).sessionId ?? "";
} catch {
  // told below
}
if (session) {
  for (const start of [0, 25, 50, 75]) {
    const page = await vault("GET", `objects/documents?start=${start}`);
    if (page.match(/<id>/g)?.length !== 25) failures.push("a page is not whole");
  }
  for (let number = 0; number < 12; number++) await vault("POST", "objects/documents", { name__v: `${run}-${number}` });
  await vault("POST", "objects/documents", { name__v: `forbidden-${run}` }, "INSUFFICIENT_ACCESS");
  await vault("DELETE", "session");
} else {
  failures.push(`login: ${answer.status} ${text.slice(0, 300)}`);
}
console.log(JSON.stringify({ calls, failures, session }));
process.exitCode = failures.length ? 1 : 0;
