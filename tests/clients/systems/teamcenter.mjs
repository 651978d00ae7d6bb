// A sync with Teamcenter as people write it: fetch with a cookie map, no retries. BASE_URL RUN, the password in PASSWORD.
import { createHash } from "node:crypto";

const [base, run] = process.argv.slice(2);
const failures = [];
const jar = new Map();
let calls = 0;

async function send(path, options = {}) {
  const headers = { ...options.headers };
  if (jar.size) headers.Cookie = [...jar].map(([name, value]) => `${name}=${value}`).join("; ");
  if (jar.has("XSRF-TOKEN")) headers["X-XSRF-TOKEN"] = jar.get("XSRF-TOKEN");
  const answer = await fetch(base + path, { ...options, headers });
  for (const line of answer.headers.getSetCookie()) {
    const [, name, value] = /^([^=]+)=([^;]*)/.exec(line);
    jar.set(name, value);
  }
  return { status: answer.status, content: Buffer.from(await answer.arrayBuffer()) };
}

async function call(service, body, expected = "") {
  calls += 1;
  const given = JSON.stringify({ header: { state: {}, policy: {} }, body });
  const headers = { "Content-Type": "application/json" };
  const answer = await send(`/tc/JsonRestServices/${service}`, { method: "POST", headers, body: given });
  let told = {};
  try {
    told = JSON.parse(answer.content.toString());
  } catch {
    // told below
  }
  const name = told[".QName"] ?? "Exceptions.none";
  if (expected ? !name.endsWith(expected) : name.includes("Exceptions.")) failures.push(`${service}: ${answer.status} ${name}`);
  return told;
}

await send("/getSessionVars");
const given = { user: "script", password: process.env.PASSWORD, group: "", role: "", locale: "", descrimator: "x" };
await call("Core-2011-06-Session/login", { credentials: given }, "Session.LoginResponse");
if (!failures.length) {
  await call("Internal-AWS2-2019-12-DataManagement/getTCSessionAnalyticsInfo", { extraInfoIn: {} });
  for (const start of [0, 25, 50, 75]) {
    const page = await call("Core-2006-03-DataManagement/getProperties", { start });
    if (page.rows?.length !== 25) failures.push("a page is not whole");
  }
  for (let number = 0; number < 12; number++) {
    const made = await call("Core-2006-03-DataManagement/createItems", { items: [{ id: `${run}-${number}` }] });
    if (made.output?.length !== 1) failures.push(`item ${number} was not made`);
  }
  await call("Core-2007-09-Release/setReleaseStatus", {}, "Exceptions.ServiceException");
  const content = Buffer.concat(Array(4096).fill(createHash("sha256").update(run).digest()));
  const form = new FormData();
  form.set("fmsTicket", "t");
  form.set("fmsFile", new Blob([content]), `${run}.bin`);
  calls += 2;
  const sent = await send("/fms/fmsupload", { method: "POST", body: form });
  if (sent.status !== 200) failures.push(`fmsupload: ${sent.status}`);
  const { ticket } = await call("Core-2006-03-FileManagement/getFileReadTickets", { file: `${run}.bin` });
  const got = await send(`/fms/fmsdownload/x?ticket=${ticket}`);
  if (!got.content.equals(content)) failures.push("the file came back as another one");
  await call("Core-2006-03-Session/logout", {}, "Session.LogoutResponse");
}
console.log(JSON.stringify({ calls, failures, session: jar.get("JSESSIONID") }));
process.exitCode = failures.length ? 1 : 0;
