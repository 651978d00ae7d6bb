// Accounts by jsforce, as its documents have it: a login by SOAP, then REST. BASE_URL RUN.
const jsforce = require("jsforce");

const [base, run] = process.argv.slice(2);
const failures = [];

async function main() {
  const org = new jsforce.Connection({ loginUrl: base, version: "59.0" });
  await org.login("script", process.env.PASSWORD);
  for (let page = 0; page < 4; page++) {
    const found = await org.query("SELECT Id FROM Account");
    if (found.records.length !== 25) failures.push("a page is not whole");
  }
  for (let number = 0; number < 12; number++) {
    const made = await org.sobject("Account").create({ Name: `${run}-${number}` });
    if (!made.success) failures.push(`account ${number} was not made`);
  }
  await org.logout();
}

main()
  .catch((error) => failures.push(`${error.name}: ${error.message}`))
  .finally(() => {
    console.log(JSON.stringify({ failures }));
    process.exitCode = failures.length ? 1 : 0;
  });
