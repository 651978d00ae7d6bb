<?php
// PHP's SoapClient, which knows no proxy variable: soap_calls.php URL
$client = new SoapClient($argv[1] . '/soap?wsdl', ['login' => 'old', 'password' => 'stale', 'cache_wsdl' => WSDL_CACHE_NONE]);
foreach (['7', '8', '0', '9'] as $number) {
    try {
        $part = $client->GetPart(['number' => $number]);
        echo "$part->name $part->call $part->page\n";
    } catch (SoapFault $fault) {
        if ($fault->getMessage() !== 'no such part') {
            throw $fault;
        }
        echo "fault {$fault->getMessage()}\n";
    }
}
