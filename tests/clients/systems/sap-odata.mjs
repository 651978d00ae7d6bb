// A sync with SAP Gateway as people write it: fetch with a cookie map, no retries. BASE_URL RUN, the password in PASSWORD.
import { createHash } from "node:crypto";

const [base, run] = process.argv.slice(2);
const basic = `Basic ${Buffer.from(`script:${process.env.PASSWORD}`).toString("base64")}`;
const failures = [];
const jar = new Map();
let calls = 0;
let token = "";

async function call(method, path, expected, { body, headers = {} } = {}) {
  calls += 1;
  const given = { Authorization: basic, Accept: "application/json", ...headers };
  if (jar.size) given.Cookie = [...jar].map(([name, value]) => `${name}=${value}`).join("; ");
  if (token && method !== "GET" && method !== "HEAD") given["X-CSRF-Token"] = token;
  const answer = await fetch(`${base}/${path}`, { method, body, headers: given });
  for (const line of answer.headers.getSetCookie()) {
    const [, name, value] = /^([^=]+)=([^;]*)/.exec(line);
    jar.set(name, value);
  }
  const content = Buffer.from(await answer.arrayBuffer());
  if (answer.status !== expected) failures.push(`${method} ${path}: ${answer.status} ${content.toString().slice(0, 200)}`);
  return { answer, content };
}

const post = (value) => ({ body: JSON.stringify(value), headers: { "Content-Type": "application/json" } });

// As SAP's own SDK does it: HEAD at the service's root, with its slash.
const told = await call("HEAD", "API_PRODUCT_SRV/", 200, { headers: { "X-CSRF-Token": "Fetch" } });
token = told.answer.headers.get("x-csrf-token") ?? "";
if (!failures.length) {
  if (!token || !jar.size) failures.push("no token, or no cookies");
  for (const skip of [0, 25, 50, 75]) {
    const { content } = await call("GET", `API_PRODUCT_SRV/A_Product?$skip=${skip}`, 200);
    if (JSON.parse(content).d?.results?.length !== 25) failures.push("a page is not whole");
  }
  for (let number = 0; number < 12; number++) {
    await call("POST", "API_PRODUCT_SRV/A_Product", 201, post({ Product: `${run}-${number}` }));
  }
  const refused = await call("POST", "API_PRODUCT_SRV/A_Product", 403, post({ Product: "forbidden" }));
  if (!refused.content.includes("authorization")) failures.push("the business error is another one");
  const content = Buffer.concat(Array(4096).fill(createHash("sha256").update(run).digest()));
  const slug = { Slug: `${run}.bin`, "Content-Type": "application/octet-stream" };
  await call("POST", "API_CV_ATTACHMENT_SRV/AttachmentContentSet", 201, { body: content, headers: slug });
  const got = await call("GET", `API_CV_ATTACHMENT_SRV/AttachmentContentSet('${run}.bin')/$value`, 200);
  if (!got.content.equals(content)) failures.push("the file came back as another one");
}
console.log(JSON.stringify({ calls, failures, session: token }));
process.exitCode = failures.length ? 1 : 0;
