// `npm start`: prepares a clone and serves. Arguments are those of `duet serve`.
import { prepare, runCli } from "./prepare.mjs";

runCli(await prepare(), ["serve", ...process.argv.slice(2)]);
