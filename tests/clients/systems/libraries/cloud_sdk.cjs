// SAP's products by the SAP Cloud SDK, which fetches a token of its own for each write. BASE_URL RUN.
const { executeHttpRequest } = require("@sap-cloud-sdk/http-client");

const [base, run] = process.argv.slice(2);
const destination = { url: base, username: "script", password: process.env.PASSWORD, authentication: "BasicAuthentication" };
const failures = [];

async function main() {
  for (const start of [0, 25, 50, 75]) {
    const page = await executeHttpRequest(destination, { method: "get", url: `/API_PRODUCT_SRV/A_Product?$skip=${start}` });
    if (page.data.d.results.length !== 25) failures.push("a page is not whole");
  }
  for (let number = 0; number < 12; number++) {
    const data = { Product: `${run}-${number}` };
    const made = await executeHttpRequest(destination, { method: "post", url: "/API_PRODUCT_SRV/A_Product", data });
    if (made.status !== 201) failures.push(`product ${number}: ${made.status}`);
  }
}

main()
  .catch((error) => failures.push(`${error.message} ${error.cause?.message ?? ""} ${error.cause?.response?.status ?? ""}`))
  .finally(() => {
    console.log(JSON.stringify({ failures }));
    process.exitCode = failures.length ? 1 : 0;
  });
