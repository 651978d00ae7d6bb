// Writes by SAP's own SDK, which fetches a token before each: sap_cloud_sdk.cjs BASE_URL RUN, the password in PASSWORD.
const { executeHttpRequest } = require("@sap-cloud-sdk/http-client");

const [url, run] = process.argv.slice(2);
const destination = { url, username: "script", password: process.env.PASSWORD, authentication: "BasicAuthentication" };
const failures = [];

async function call(method, data) {
  try {
    const answer = await executeHttpRequest(destination, { method, url: "API_PRODUCT_SRV/A_Product", data });
    return answer.data.d;
  } catch (error) {
    failures.push(`${method}: ${error.message} ${error.cause?.message ?? ""} ${error.cause?.response?.status ?? ""}`);
    return {};
  }
}

(async () => {
  if ((await call("get")).results?.length !== 25) failures.push("the page is not whole");
  for (let number = 0; number < 6; number++) await call("post", { Product: `${run}-${number}` });
  process.stdout.write(`${JSON.stringify({ failures })}\n`);
})();
