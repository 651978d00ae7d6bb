# A sync with Teamcenter as people write it: LWP with a cookie jar, no retries. BASE_URL RUN, the password in PASSWORD.
use strict;
use warnings;
use Digest::SHA qw(sha256);
use HTTP::Request::Common qw(POST);
use JSON::PP;
use LWP::UserAgent;

my ($base, $run) = @ARGV;
my $agent = LWP::UserAgent->new(timeout => 120, cookie_jar => {});
my (@failures, $calls);

sub cookie {
    my ($name) = @_;
    my $found = '';
    $agent->cookie_jar->scan(sub { $found = $_[2] if $_[1] eq $name });
    return $found;
}

sub call {
    my ($service, $body, $expected) = @_;
    $calls++;
    my $request = HTTP::Request->new(POST => "$base/tc/JsonRestServices/$service");
    $request->header('Content-Type' => 'application/json', 'X-XSRF-TOKEN' => cookie('XSRF-TOKEN'));
    $request->content(encode_json({ header => { state => {}, policy => {} }, body => $body }));
    my $answer = $agent->request($request);
    my $told = eval { decode_json($answer->decoded_content(charset => 'none')) } || {};
    my $name = $told->{'.QName'} || 'Exceptions.none';
    my $fine = $expected ? $name =~ /\Q$expected\E$/ : $name !~ /Exceptions\./;
    push @failures, "$service: " . $answer->code . " $name" unless $fine;
    return $told;
}

$agent->get("$base/getSessionVars");
my $given = {
    user => 'script', password => $ENV{PASSWORD}, group => '', role => '', locale => '', descrimator => 'x'
};
call('Core-2011-06-Session/login', { credentials => $given }, 'Session.LoginResponse');
unless (@failures) {
    call('Internal-AWS2-2019-12-DataManagement/getTCSessionAnalyticsInfo', { extraInfoIn => {} });
    for my $start (0, 25, 50, 75) {
        my $page = call('Core-2006-03-DataManagement/getProperties', { start => $start });
        push @failures, 'a page is not whole' unless @{ $page->{rows} || [] } == 25;
    }
    for my $number (0 .. 11) {
        my $made = call('Core-2006-03-DataManagement/createItems', { items => [ { id => "$run-$number" } ] });
        push @failures, "item $number was not made" unless @{ $made->{output} || [] } == 1;
    }
    call('Core-2007-09-Release/setReleaseStatus', {}, 'Exceptions.ServiceException');
    my $content = sha256($run) x 4096;
    my $form = [ fmsTicket => 't', fmsFile => [ undef, "$run.bin", Content => $content ] ];
    my $upload = POST("$base/fms/fmsupload", Content_Type => 'form-data', Content => $form);
    $upload->header('X-XSRF-TOKEN' => cookie('XSRF-TOKEN'));
    $calls += 2;
    my $sent = $agent->request($upload);
    push @failures, 'fmsupload: ' . $sent->code unless $sent->code == 200;
    my $ticket = call('Core-2006-03-FileManagement/getFileReadTickets', { file => "$run.bin" })->{ticket};
    my $got = $agent->get("$base/fms/fmsdownload/x?ticket=$ticket");
    push @failures, 'the file came back as another one' unless $got->content eq $content;
    call('Core-2006-03-Session/logout', {}, 'Session.LogoutResponse');
}
print encode_json({ calls => $calls, failures => \@failures, session => cookie('JSESSIONID') }), "\n";
exit(@failures ? 1 : 0);
