#!/usr/bin/env node
// The `duet` command (`npx duet`, `npm run duet --`): prepares a clone and hands all arguments to src/cli.ts.
import { prepare, runCli } from "./prepare.mjs";

runCli(await prepare(), process.argv.slice(2));
